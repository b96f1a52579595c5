#include "bench/closed_loop.h"

#include <algorithm>
#include <chrono>

#include "bench/on_threads.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

ClosedLoop::ClosedLoop(const std::string& address, int clients) : latencies_us_(clients) {
  clients_.reserve(clients);
  for (int i = 0; i < clients; ++i) clients_.push_back(std::make_unique<RawClient>(address));
}

absl::Status ClosedLoop::Run(absl::Duration time, const grpc::ByteBuffer& request,
                             size_t reply_bytes) {
  const Clock::time_point start = Clock::now();
  const Clock::time_point end = start + absl::ToChronoNanoseconds(time);
  const auto client = [&](int i) -> absl::Status {
    grpc::ByteBuffer reply;
    for (Clock::time_point sent = Clock::now(); sent < end;) {
      RETURN_IF_ERROR(clients_[i]->Apply(request, reply_bytes, reply));
      const Clock::time_point answered = Clock::now();
      latencies_us_[i].push_back(
          std::chrono::duration<double, std::micro>(answered - sent).count());
      sent = answered;
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(OnThreads(static_cast<int>(clients_.size()), client));
  seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
  return absl::OkStatus();
}

absl::Status ClosedLoop::Send(int64_t calls, const std::vector<grpc::ByteBuffer>& requests) {
  const auto clients = static_cast<int64_t>(clients_.size());
  return OnThreads(static_cast<int>(clients), [&](int i) -> absl::Status {
    grpc::ByteBuffer reply;
    for (int64_t call = i; call < calls; call += clients) {
      RETURN_IF_ERROR(clients_[i]->Apply(requests[call % requests.size()], 0, reply));
    }
    return absl::OkStatus();
  });
}

std::vector<double> ClosedLoop::SortedLatenciesUs() const {
  std::vector<double> all;
  for (const std::vector<double>& each : latencies_us_) {
    all.insert(all.end(), each.begin(), each.end());
  }
  std::ranges::sort(all);
  return all;
}

}  // namespace adapterd::bench
