// What every RPC does besides its own work, whatever its kind: once, here.
#ifndef ADAPTERD_SERVICE_CALL_RECORD_H_
#define ADAPTERD_SERVICE_CALL_RECORD_H_

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/cancellation.h"
#include "service/access/access_control.h"
#include "service/access/audit_log.h"
#include "service/logger.h"
#include "service/metrics.h"
#include "service/open_calls.h"

namespace adapterd {

// Data-plane successes are logged one in this many; errors and the control plane always.
inline constexpr int64_t kSuccessLogInterval = 1000;

enum class Plane { kControl, kData };

// Shared by all calls; outlives them.
struct RpcEnvironment {
  Metrics& metrics;
  Logger& logger;
  int64_t max_message_bytes;
  AccessControl* access = nullptr;  // null: everybody may do everything
  AuditLog* audit = nullptr;        // null: there is none
  OpenCalls open_calls = {};

  // MESSAGE_TOO_LARGE when a message of `bytes` is over the limit; `what` is "request", "reply" or
  // "message".
  absl::Status CheckMessageSize(const char* what, int64_t bytes) const;
};

// The books of one call: request id, deadline and cancellation, metrics, log line, status
// conversion. Owned by the call's reactor. Threads: any, for each method as it says.
class CallRecord {
 public:
  // A new call. Counts it as open until Left.
  CallRecord(RpcEnvironment& environment, RpcMetrics& metrics, Plane plane,
             grpc::CallbackServerContext* context, int64_t request_bytes);

  // What speaks against working on it: DRAINING, UNAUTHENTICATED, PERMISSION_DENIED,
  // MESSAGE_TOO_LARGE. Nothing may be done for the call before. Once, before any other thread knows
  // the call.
  absl::Status Admit();

  // Of a stream: one more message, which fails alone when it is too large. On the thread that reads
  // it.
  void AddRequestBytes(int64_t bytes) { request_bytes_ += bytes; }
  // As Admit, for the next message of a stream, which may have outlived the rights of its caller.
  // One message at a time.
  absl::Status AdmitMessage(int64_t bytes);
  // The same for a message that goes out.
  absl::Status CheckAllowed();

  // What the audit log will say of the call, if it is one that is audited. Before End.
  void AuditRequest(const google::protobuf::Message& request);
  void AuditResponse(const google::protobuf::Message& response);

  // What the client gets. Call once, before the reactor's Finish.
  grpc::Status End(const absl::Status& status, int64_t response_bytes);

  // Once gRPC is done with the call; the environment may be gone afterwards.
  void Left();

  // Runs `callback` when the client goes away or the deadline passes; at once if that was before,
  // never once the call is over.
  void WhenCancelled(absl::AnyInvocable<void()> callback) ABSL_LOCKS_EXCLUDED(mutex_);
  // What gRPC tells the reactor. The second lets go of the callback, which may hold the reactor.
  void OnCancel() ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone() ABSL_LOCKS_EXCLUDED(mutex_);

  const Cancellation& cancellation() const { return cancellation_; }
  int64_t request_bytes() const { return request_bytes_; }

  // As RpcEnvironment.
  absl::Status CheckMessageSize(const char* what, int64_t bytes) const {
    return environment_.CheckMessageSize(what, bytes);
  }
  absl::Time deadline() const { return absl::FromChrono(context_->deadline()); }

 private:
  bool is_audited() const { return environment_.audit != nullptr && rule_ && rule_->changes; }
  void Log(const absl::Status& status, absl::Duration duration, int64_t response_bytes);
  void Audit(const absl::Status& status);

  RpcEnvironment& environment_;
  RpcMetrics& metrics_;
  const Plane plane_;
  grpc::CallbackServerContext* const context_;
  int64_t request_bytes_;  // so far
  OpenCalls::Call open_;
  const bool entered_;              // into open_calls
  const MethodRule* const rule_;    // null: there is none
  uint64_t policy_generation_ = 0;  // that it was admitted by
  CallerPtr caller_;                // null: not known
  std::vector<AuditField> audit_fields_;
  Cancellation cancellation_;

  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::AnyInvocable<void()> on_cancel_ ABSL_GUARDED_BY(mutex_);
};

// Runs `work`; exceptions become errors: out of memory is MEMORY_BUDGET_EXCEEDED, anything else
// INTERNAL.
absl::Status GuardedCall(absl::FunctionRef<absl::Status()> work);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_CALL_RECORD_H_
