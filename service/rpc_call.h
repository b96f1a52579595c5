// A unary RPC in progress.
#ifndef ADAPTERD_SERVICE_RPC_CALL_H_
#define ADAPTERD_SERVICE_RPC_CALL_H_

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "service/call_record.h"

namespace adapterd {

// Shared by gRPC (until OnDone) and by whoever works on the call. The request and the response live
// until the call is answered.
//
// Threads: any; exactly one wins Claim and then calls Answer.
class RpcCall final : public grpc::ServerUnaryReactor,
                      public std::enable_shared_from_this<RpcCall> {
 public:
  // What is not admitted (CallRecord::Admit) is answered at once: see answered().
  static std::shared_ptr<RpcCall> Start(RpcEnvironment& environment, RpcMetrics& metrics,
                                        Plane plane, grpc::CallbackServerContext* context,
                                        int64_t request_bytes);
  // The same for a message that was parsed, of which the audit log is to tell.
  static std::shared_ptr<RpcCall> Start(RpcEnvironment& environment, RpcMetrics& metrics,
                                        Plane plane, grpc::CallbackServerContext* context,
                                        const google::protobuf::Message& request);

  bool answered() const { return claimed_; }

  // True for the first caller, who must Answer; everybody else must leave the response alone.
  bool Claim() { return !claimed_.exchange(true); }

  // Ends the call. REQUIRES: Claim() was true for the caller.
  void Answer(const absl::Status& status, const google::protobuf::Message* response = nullptr);
  void Answer(const absl::Status& status, int64_t response_bytes);

  // Runs `work` (GuardedCall) and answers with its status. What `work` holds is let go before the
  // answer, so that a client which has its answer finds the room free. REQUIRES: nobody has claimed
  // the call.
  void Run(const google::protobuf::Message& response, absl::AnyInvocable<absl::Status()> work);

  // As CallRecord.
  void WhenCancelled(absl::AnyInvocable<void()> callback) {
    record_.WhenCancelled(std::move(callback));
  }
  const Cancellation& cancellation() const { return record_.cancellation(); }
  int64_t request_bytes() const { return record_.request_bytes(); }
  absl::Time deadline() const { return record_.deadline(); }
  absl::Status CheckMessageSize(const char* what, int64_t bytes) const {
    return record_.CheckMessageSize(what, bytes);
  }

 private:
  RpcCall(RpcEnvironment& environment, RpcMetrics& metrics, Plane plane,
          grpc::CallbackServerContext* context, int64_t request_bytes)
      : record_(environment, metrics, plane, context, request_bytes) {}
  void Admit();
  void OnCancel() override { record_.OnCancel(); }
  void OnDone() override;
  // OnDone is short and calls nothing of gRPC's, so that it may run where the call ends, as that of
  // gRPC's own reactors does, and not after a switch to another thread.
  bool InternalInlineable() override { return true; }

  CallRecord record_;
  std::atomic<bool> claimed_{false};
  std::shared_ptr<RpcCall> self_;  // gRPC's share
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_RPC_CALL_H_
