#include "bench/open_loop.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>

namespace adapterd::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kConnections = 4;
constexpr std::chrono::milliseconds kHealthPeriod{5};
constexpr std::chrono::seconds kDeadline{60};

double MicrosSince(Clock::time_point time) {
  return std::chrono::duration<double, std::micro>(Clock::now() - time).count();
}

struct Call {
  Clock::time_point due;
  grpc::ClientContext context;
  grpc::ByteBuffer reply;
  grpc::Status status;
  std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader;
};

// Takes the answers, on a thread of its own, until the queue is shut down.
class Answers {
 public:
  Answers(grpc::CompletionQueue& queue, size_t reply_bytes)
      : queue_(queue), reply_bytes_(reply_bytes), thread_([this] { Run(); }) {}

  // After the queue was shut down.
  absl::StatusOr<OpenLoopResult> Join() {
    thread_.join();
    std::ranges::sort(result_.accepted_us);
    if (!status_.ok()) return status_;
    return std::move(result_);
  }
  Clock::time_point last() const { return last_; }

 private:
  void Run() {
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) Take(*std::unique_ptr<Call>(static_cast<Call*>(tag)));
  }

  void Take(const Call& call) {
    if (call.status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      ++result_.refused;
    } else if (!call.status.ok()) {
      status_ = absl::Status(static_cast<absl::StatusCode>(call.status.error_code()),
                             call.status.error_message());
    } else if (call.reply.Length() != reply_bytes_) {
      status_ = absl::InternalError("a reply of another length");
    } else {
      result_.accepted_us.push_back(MicrosSince(call.due));
      last_ = Clock::now();
    }
  }

  grpc::CompletionQueue& queue_;
  const size_t reply_bytes_;
  OpenLoopResult result_;
  absl::Status status_;
  Clock::time_point last_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<OpenLoopResult> RunOpenLoop(const std::string& address, double per_second,
                                           absl::Duration time, const grpc::ByteBuffer& request,
                                           size_t reply_bytes) {
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs;
  for (int i = 0; i < kConnections; ++i) {
    stubs.push_back(std::make_unique<grpc::GenericStub>(ConnectAlone(address)));
  }
  grpc::CompletionQueue queue;
  Answers answers(queue, reply_bytes);
  std::mt19937_64 random(1);
  std::exponential_distribution<double> gap(per_second);
  const Clock::time_point start = Clock::now();
  const Clock::time_point end = start + absl::ToChronoNanoseconds(time);
  Clock::time_point due = start;
  for (size_t i = 0; due < end; ++i) {
    std::this_thread::sleep_until(due);
    auto call = std::make_unique<Call>();
    call->due = due;
    call->context.set_deadline(std::chrono::system_clock::now() + kDeadline);
    call->reader =
        stubs[i % kConnections]->PrepareUnaryCall(&call->context, kApplyMethod, request, &queue);
    call->reader->StartCall();
    Call& sent = *call.release();  // Answers has it
    sent.reader->Finish(&sent.reply, &sent.status, &sent);
    due += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(gap(random)));
  }
  queue.Shutdown();
  absl::StatusOr<OpenLoopResult> result = answers.Join();
  if (!result.ok()) return result;
  result->seconds = absl::ToDoubleSeconds(time);
  const double until_last = std::chrono::duration<double>(answers.last() - start).count();
  result->answers_per_second = static_cast<double>(result->accepted_us.size()) / until_last;
  return result;
}

HealthProbe::HealthProbe(const std::string& address) : client_(address) {
  thread_ = std::thread([this] { Run(); });
}

HealthProbe::~HealthProbe() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<double> HealthProbe::SlowestMs() {
  stop_ = true;
  thread_.join();
  if (!status_.ok()) return status_;
  return slowest_ms_;
}

void HealthProbe::Run() {
  status_ = client_.CheckHealth();  // connects
  while (!stop_ && status_.ok()) {
    const Clock::time_point asked = Clock::now();
    status_ = client_.CheckHealth();
    slowest_ms_ = std::max(slowest_ms_, MicrosSince(asked) / 1000);
    std::this_thread::sleep_for(kHealthPeriod);
  }
}

}  // namespace adapterd::bench
