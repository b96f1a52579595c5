// What every unary RPC does besides its own work: once, here.
#ifndef ADAPTERD_SERVICE_RPC_CALL_H_
#define ADAPTERD_SERVICE_RPC_CALL_H_

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/cancellation.h"
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
  OpenCalls open_calls = {};
};

// One call in progress: request id, deadline and cancellation, metrics, log line, status
// conversion. Shared by gRPC (until OnDone) and by whoever works on the call. The request and the
// response live until the call is answered.
//
// Threads: any; exactly one wins Claim and then calls Answer.
class RpcCall final : public grpc::ServerUnaryReactor,
                      public std::enable_shared_from_this<RpcCall> {
 public:
  // A request over the size limit, or after open_calls was closed, is answered at once: see
  // answered().
  static std::shared_ptr<RpcCall> Start(RpcEnvironment& environment, RpcMetrics& metrics,
                                        Plane plane, grpc::CallbackServerContext* context,
                                        const google::protobuf::Message& request);

  bool answered() const { return claimed_; }

  // True for the first caller, who must Answer; everybody else must leave the response alone.
  bool Claim() { return !claimed_.exchange(true); }

  // Ends the call. REQUIRES: Claim() was true for the caller.
  void Answer(const absl::Status& status, const google::protobuf::Message* response = nullptr);

  // Runs `work` and answers with its status. Exceptions become errors: out of memory is
  // MEMORY_BUDGET_EXCEEDED, anything else INTERNAL. What `work` holds is let go before the answer,
  // so that a client which has its answer finds the room free. REQUIRES: nobody has claimed the
  // call.
  void Run(const google::protobuf::Message& response, absl::AnyInvocable<absl::Status()> work);

  // Runs `callback` when the client goes away or the deadline passes; at once if that was before,
  // never once the call is over.
  void WhenCancelled(absl::AnyInvocable<void()> callback) ABSL_LOCKS_EXCLUDED(mutex_);

  const Cancellation& cancellation() const { return cancellation_; }
  int64_t request_bytes() const { return request_bytes_; }

  // MESSAGE_TOO_LARGE when a message of `bytes` is over the limit; `what` is "request" or "reply".
  absl::Status CheckMessageSize(const char* what, int64_t bytes) const;

 private:
  RpcCall(RpcEnvironment& environment, RpcMetrics& metrics, Plane plane,
          grpc::CallbackServerContext* context, int64_t request_bytes);
  void OnCancel() override;
  void OnDone() override;
  void Log(const absl::Status& status, absl::Duration duration, int64_t response_bytes);

  RpcEnvironment& environment_;
  RpcMetrics& metrics_;
  const Plane plane_;
  grpc::CallbackServerContext* const context_;
  const int64_t request_bytes_;
  const absl::Time start_ = absl::Now();
  const std::string request_id_;
  Cancellation cancellation_;
  bool entered_ = false;  // into open_calls; set by Start
  std::atomic<bool> claimed_{false};
  std::shared_ptr<RpcCall> self_;  // gRPC's share

  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::AnyInvocable<void()> on_cancel_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_RPC_CALL_H_
