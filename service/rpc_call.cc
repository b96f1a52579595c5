#include "service/rpc_call.h"

#include <fmt/format.h>

#include <chrono>
#include <new>
#include <random>

#include "core/base/error.h"
#include "service/status_convert.h"

namespace adapterd {
namespace {

constexpr char kRequestIdHeader[] = "x-request-id";
constexpr size_t kMaxRequestIdBytes = 128;

std::string NewRequestId() {
  static thread_local std::mt19937_64 generator{std::random_device{}()};
  return fmt::format("{:016x}", generator());
}

// The caller's, when it is one printable word, else a new one.
std::string RequestId(const grpc::CallbackServerContext& context) {
  const auto it = context.client_metadata().find(kRequestIdHeader);
  if (it == context.client_metadata().end()) return NewRequestId();
  const std::string id(it->second.data(), it->second.size());
  if (id.empty() || id.size() > kMaxRequestIdBytes) return NewRequestId();
  for (char c : id) {
    if (c <= ' ' || c > '~') return NewRequestId();
  }
  return id;
}

absl::Status GuardedCall(absl::AnyInvocable<absl::Status()>& work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return Error(Reason::kMemoryBudgetExceeded, "the machine has no memory left for this request");
  } catch (const std::exception& exception) {
    return absl::InternalError(exception.what());
  }
}

}  // namespace

std::shared_ptr<RpcCall> RpcCall::Start(RpcEnvironment& environment, RpcMetrics& metrics,
                                        Plane plane, grpc::CallbackServerContext* context,
                                        const google::protobuf::Message& request) {
  std::shared_ptr<RpcCall> call(new RpcCall(environment, metrics, plane, context,
                                            static_cast<int64_t>(request.ByteSizeLong())));
  call->self_ = call;
  metrics.Started();
  context->AddTrailingMetadata(kRequestIdHeader, call->request_id_);
  absl::Status status = call->CheckMessageSize("request", call->request_bytes_);
  call->entered_ = environment.open_calls.Enter();
  if (!call->entered_) status = Error(Reason::kDraining, "the server is shutting down");
  if (!status.ok() && call->Claim()) call->Answer(status);
  return call;
}

RpcCall::RpcCall(RpcEnvironment& environment, RpcMetrics& metrics, Plane plane,
                 grpc::CallbackServerContext* context, int64_t request_bytes)
    : environment_(environment),
      metrics_(metrics),
      plane_(plane),
      context_(context),
      request_bytes_(request_bytes),
      request_id_(RequestId(*context)) {}

absl::Status RpcCall::CheckMessageSize(const char* what, int64_t bytes) const {
  if (bytes <= environment_.max_message_bytes) return absl::OkStatus();
  return Error(Reason::kMessageTooLarge, fmt::format("the {} has {} bytes, over the limit of {}",
                                                     what, bytes, environment_.max_message_bytes))
      .With("expected", environment_.max_message_bytes)
      .With("actual", bytes);
}

void RpcCall::Run(const google::protobuf::Message& response,
                  absl::AnyInvocable<absl::Status()> work) {
  if (!Claim()) return;
  const absl::Status status = GuardedCall(work);
  work = nullptr;
  Answer(status, &response);
}

void RpcCall::Answer(const absl::Status& status, const google::protobuf::Message* response) {
  absl::Status final_status = status;
  // gRPC cancels a call whose deadline passes; say which of the two it was.
  if (status.code() == absl::StatusCode::kCancelled &&
      context_->deadline() <= std::chrono::system_clock::now()) {
    final_status = absl::DeadlineExceededError("the deadline passed");
  }
  const absl::Duration duration = absl::Now() - start_;
  const bool sized = final_status.ok() && response != nullptr;
  metrics_.Handled(final_status.code(), duration);
  if (!final_status.ok()) {
    environment_.metrics.Rejected(ReasonName(GetErrorDetails(final_status).reason));
  }
  Log(final_status, duration, sized ? static_cast<int64_t>(response->ByteSizeLong()) : 0);
  Finish(ToGrpcStatus(final_status));
}

void RpcCall::Log(const absl::Status& status, absl::Duration duration, int64_t response_bytes) {
  static std::atomic<int64_t> successes{0};
  if (status.ok() && plane_ == Plane::kData &&
      successes.fetch_add(1, std::memory_order_relaxed) % kSuccessLogInterval != 0) {
    return;
  }
  const LogLevel level = status.ok()                                    ? LogLevel::kInfo
                         : status.code() == absl::StatusCode::kInternal ? LogLevel::kError
                                                                        : LogLevel::kWarning;
  const double milliseconds = absl::ToDoubleMilliseconds(duration);
  if (status.ok()) {
    environment_.logger.Log(level, "rpc",
                            {{"method", metrics_.method()},
                             {"code", CodeLabel(status.code())},
                             {"ms", milliseconds},
                             {"request_bytes", request_bytes_},
                             {"response_bytes", response_bytes},
                             {"request_id", request_id_}});
    return;
  }
  environment_.logger.Log(
      level, "rpc",
      {{"method", metrics_.method()},
       {"code", CodeLabel(status.code())},
       {"reason", std::string(ReasonName(GetErrorDetails(status).reason))},
       {"message", ClampUtf8(std::string(status.message()), kMaxErrorMessageBytes)},
       {"ms", milliseconds},
       {"request_bytes", request_bytes_},
       {"request_id", request_id_}});
}

void RpcCall::WhenCancelled(absl::AnyInvocable<void()> callback) {
  {
    absl::MutexLock lock(&mutex_);
    if (done_) return;
    if (!cancelled_) {
      on_cancel_ = std::move(callback);
      return;
    }
  }
  callback();
}

void RpcCall::OnCancel() {
  cancellation_.Cancel();
  absl::AnyInvocable<void()> callback;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    callback = std::move(on_cancel_);
  }
  if (callback) callback();
}

void RpcCall::OnDone() {
  absl::AnyInvocable<void()> callback;
  {
    absl::MutexLock lock(&mutex_);
    done_ = true;
    callback = std::move(on_cancel_);  // may hold shares of this call
  }
  callback = nullptr;
  RpcEnvironment& environment = environment_;
  const bool entered = entered_;
  self_.reset();  // may be the last share
  if (entered) environment.open_calls.Leave();
}

}  // namespace adapterd
