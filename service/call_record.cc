#include "service/call_record.h"

#include <fmt/format.h>

#include <iterator>
#include <new>
#include <random>
#include <vector>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/access/audit_fields.h"
#include "service/access/call_identity.h"
#include "service/status_convert.h"
#include "service/trace_context.h"

namespace adapterd {
namespace {

constexpr char kRequestIdHeader[] = "x-request-id";
constexpr size_t kMaxRequestIdBytes = 128;

std::string NewRequestId() {
  static thread_local std::mt19937_64 generator{std::random_device{}()};
  return fmt::format("{:016x}", generator());
}

// A header that the call has once; empty when it has not.
std::string_view SingleHeader(const grpc::CallbackServerContext& context, const char* name) {
  const auto [begin, end] = context.client_metadata().equal_range(name);
  if (begin == end || std::next(begin) != end) return "";
  return {begin->second.data(), begin->second.size()};
}

// The caller's, when it is one printable word, else a new one.
std::string RequestId(const grpc::CallbackServerContext& context) {
  std::string id(SingleHeader(context, kRequestIdHeader));
  if (id.empty() || id.size() > kMaxRequestIdBytes) return NewRequestId();
  for (char c : id) {
    if (c <= ' ' || c > '~') return NewRequestId();
  }
  return id;
}

}  // namespace

absl::Status GuardedCall(absl::FunctionRef<absl::Status()> work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return Error(Reason::kMemoryBudgetExceeded, "the machine has no memory left for this request");
  } catch (const std::exception& exception) {
    return absl::InternalError(exception.what());
  }
}

CallRecord::CallRecord(RpcEnvironment& environment, RpcMetrics& metrics, Plane plane,
                       grpc::CallbackServerContext* context, int64_t request_bytes)
    : environment_(environment),
      metrics_(metrics),
      plane_(plane),
      context_(context),
      request_bytes_(request_bytes),
      open_{metrics.service(), metrics.method(), RequestId(*context), absl::Now()},
      entered_(environment.open_calls.Enter(open_)),
      rule_(FindMethodRule(metrics.service(), metrics.method())) {
  metrics.Started();
  context->AddTrailingMetadata(kRequestIdHeader, open_.request_id);
}

absl::Status CallRecord::Admit() {
  if (!entered_) return Error(Reason::kDraining, "the server is shutting down");
  RETURN_IF_ERROR(CheckAllowed());
  return CheckMessageSize("request", request_bytes_);
}

absl::Status CallRecord::AdmitMessage(int64_t bytes) {
  request_bytes_ += bytes;
  RETURN_IF_ERROR(CheckAllowed());
  return CheckMessageSize("message", bytes);
}

absl::Status CallRecord::CheckAllowed() {
  if (environment_.access == nullptr) return absl::OkStatus();
  const uint64_t generation = environment_.access->generation();
  if (generation == policy_generation_) return absl::OkStatus();
  RETURN_IF_ERROR(environment_.access->Admit(CredentialsOf(*context_), rule_, caller_));
  policy_generation_ = generation;
  return absl::OkStatus();
}

void CallRecord::AuditRequest(const google::protobuf::Message& request) {
  if (is_audited()) audit_fields_ = RequestFields(request);
}

void CallRecord::AuditResponse(const google::protobuf::Message& response) {
  if (!is_audited()) return;
  for (AuditField& field : ResponseFields(response)) audit_fields_.push_back(std::move(field));
}

absl::Status RpcEnvironment::CheckMessageSize(const char* what, int64_t bytes) const {
  if (bytes <= max_message_bytes) return absl::OkStatus();
  return Error(Reason::kMessageTooLarge, fmt::format("the {} has {} bytes, over the limit of {}",
                                                     what, bytes, max_message_bytes))
      .With("expected", max_message_bytes)
      .With("actual", bytes);
}

grpc::Status CallRecord::End(const absl::Status& status, int64_t response_bytes) {
  absl::Status final_status = status;
  // gRPC cancels a call whose deadline passes; say which of the two it was.
  if (status.code() == absl::StatusCode::kCancelled && deadline() <= absl::Now()) {
    final_status = absl::DeadlineExceededError("the deadline passed");
  }
  const absl::Duration duration = absl::Now() - open_.start;
  metrics_.Handled(final_status.code(), duration);
  if (!final_status.ok()) {
    environment_.metrics.Rejected(ReasonName(GetErrorDetails(final_status).reason));
  }
  Log(final_status, duration, final_status.ok() ? response_bytes : 0);
  if (is_audited()) Audit(final_status);
  return ToGrpcStatus(final_status);
}

void CallRecord::Left() {
  if (entered_) environment_.open_calls.Leave(open_);
}

void CallRecord::Log(const absl::Status& status, absl::Duration duration, int64_t response_bytes) {
  static std::atomic<int64_t> successes{0};
  if (status.ok() && plane_ == Plane::kData &&
      successes.fetch_add(1, std::memory_order_relaxed) % kSuccessLogInterval != 0) {
    return;
  }
  const LogLevel level = status.ok()                                    ? LogLevel::kInfo
                         : status.code() == absl::StatusCode::kInternal ? LogLevel::kError
                                                                        : LogLevel::kWarning;
  std::vector<LogField> fields = {{"method", metrics_.method()},
                                  {"code", CodeLabel(status.code())}};
  if (!status.ok()) {
    fields.emplace_back("reason", std::string(ReasonName(GetErrorDetails(status).reason)));
    fields.emplace_back("message", ClampUtf8(std::string(status.message()), kMaxErrorMessageBytes));
  }
  fields.emplace_back("ms", absl::ToDoubleMilliseconds(duration));
  fields.emplace_back("request_bytes", request_bytes_);
  if (status.ok()) fields.emplace_back("response_bytes", response_bytes);
  fields.emplace_back("request_id", open_.request_id);
  if (const auto trace = ParseTraceparent(SingleHeader(*context_, kTraceparentHeader))) {
    fields.emplace_back("trace_id", trace->trace_id);
    fields.emplace_back("parent_id", trace->parent_id);
  }
  environment_.logger.Log(level, "rpc", fields);
}

void CallRecord::Audit(const absl::Status& status) {
  // Who shows no credentials cannot be named, and must not fill the disk; log and metrics tell.
  if (environment_.access != nullptr && caller_ == nullptr) return;
  AuditRecord record;
  record.subject = caller_ ? caller_->subject : kAnonymous;
  if (caller_) record.role = RoleName(caller_->role);
  record.peer = context_->peer();
  record.transport = TransportOf(*context_);
  record.method = metrics_.service() + "/" + metrics_.method();
  record.fields = std::move(audit_fields_);
  record.code = CodeLabel(status.code());
  if (!status.ok()) record.reason = ReasonName(GetErrorDetails(status).reason);
  record.request_id = open_.request_id;
  environment_.audit->Write(record);
}

void CallRecord::WhenCancelled(absl::AnyInvocable<void()> callback) {
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

void CallRecord::OnCancel() {
  cancellation_.Cancel();
  absl::AnyInvocable<void()> callback;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    callback = std::move(on_cancel_);
  }
  if (callback) callback();
}

void CallRecord::OnDone() {
  absl::AnyInvocable<void()> callback;
  absl::MutexLock lock(&mutex_);
  done_ = true;
  callback = std::move(on_cancel_);
}

}  // namespace adapterd
