// A server-streaming RPC in progress.
#ifndef ADAPTERD_SERVICE_STREAM_CALL_H_
#define ADAPTERD_SERVICE_STREAM_CALL_H_

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "core/base/error.h"
#include "service/call_record.h"

namespace adapterd {

// Shared by gRPC (until OnDone) and by the threads that write. `Response` is a message.
template <typename Response>
class StreamCall final : public grpc::ServerWriteReactor<Response> {
 public:
  static std::shared_ptr<StreamCall> Start(RpcEnvironment& environment, RpcMetrics& metrics,
                                           Plane plane, grpc::CallbackServerContext* context,
                                           const google::protobuf::Message& request) {
    std::shared_ptr<StreamCall> call(new StreamCall(environment, metrics, plane, context,
                                                    static_cast<int64_t>(request.ByteSizeLong())));
    call->self_ = call;
    call->record_.AuditRequest(request);
    if (absl::Status status = call->record_.Admit(); !status.ok()) {
      call->answered_ = true;
      call->Finish(call->record_.End(status, 0));
    }
    return call;
  }

  // It was not admitted: there is nothing to do for it.
  bool answered() const { return answered_; }

  // Runs `work`, which may Write, and ends the call with its status. Once, on the writing thread.
  // REQUIRES: it is not answered.
  void Run(absl::AnyInvocable<absl::Status()> work) {
    const absl::Status status = GuardedCall([&] { return work(); });
    work = nullptr;
    Await();
    this->Finish(record_.End(status, written_bytes_));
  }

  // Sends one message and waits until the transport takes the next. CANCELLED when the client is
  // gone.
  absl::Status Write(const Response& response) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (absl::Status status = record_.cancellation().Check(); !status.ok()) return status;
    Await();
    {
      absl::MutexLock lock(&mutex_);
      writing_ = true;
    }
    written_bytes_ += static_cast<int64_t>(response.ByteSizeLong());
    record_.AuditResponse(response);
    this->StartWrite(&response);
    return Await() ? absl::OkStatus() : absl::CancelledError("the caller went away");
  }

  // Sends a message unless the transport still has the one before. On any thread, one at a time,
  // and not beside Write.
  void Offer(const Response& response) ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      if (writing_ || !ok_) return;
      writing_ = true;
    }
    offered_ = response;
    written_bytes_ += static_cast<int64_t>(response.ByteSizeLong());
    this->StartWrite(&offered_);
  }

  const Cancellation& cancellation() const { return record_.cancellation(); }

  void WhenCancelled(absl::AnyInvocable<void()> callback) {
    record_.WhenCancelled(std::move(callback));
  }

 private:
  StreamCall(RpcEnvironment& environment, RpcMetrics& metrics, Plane plane,
             grpc::CallbackServerContext* context, int64_t request_bytes)
      : record_(environment, metrics, plane, context, request_bytes) {}

  // Until the transport has taken all; false when the client is gone.
  bool Await() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](bool* writing) { return !*writing; }, &writing_));
    return ok_;
  }

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    ok_ = ok;
  }
  void OnCancel() override { record_.OnCancel(); }
  void OnDone() override {
    record_.OnDone();
    const std::shared_ptr<StreamCall> self = std::move(self_);
    record_.Left();
  }

  CallRecord record_;
  bool answered_ = false;      // constant once it has started
  int64_t written_bytes_ = 0;  // of the writing thread
  Response offered_;           // constant while writing_
  std::shared_ptr<StreamCall> self_;

  absl::Mutex mutex_;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ok_ ABSL_GUARDED_BY(mutex_) = true;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_STREAM_CALL_H_
