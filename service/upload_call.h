// An UploadAdapter in progress.
#ifndef ADAPTERD_SERVICE_UPLOAD_CALL_H_
#define ADAPTERD_SERVICE_UPLOAD_CALL_H_

#include <grpcpp/grpcpp.h>

#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adapterd/v1/adapter_service.pb.h"
#include "core/catalog/incoming_content.h"
#include "core/registry/registry_types.h"
#include "service/adapter_service.h"
#include "service/call_record.h"

namespace adapterd {

// Takes one message after the other: the next is read when the bytes of the last are written, so
// that a fast client waits for the disk and no more than one message is held. Then stores what came
// and loads it.
//
// Shared by gRPC (until OnDone) and by the step that goes on. Threads: one step at a time; what
// touches the disk runs on the I/O pool.
class UploadCall final : public grpc::ServerReadReactor<v1::UploadAdapterRequest>,
                         public std::enable_shared_from_this<UploadCall> {
 public:
  // `plane` and `response` outlive the call. One that is not admitted is answered at once.
  static std::shared_ptr<UploadCall> Start(ControlPlane& plane, RpcMetrics& metrics,
                                           grpc::CallbackServerContext* context,
                                           v1::UploadAdapterResponse* response);

 private:
  UploadCall(ControlPlane& plane, RpcMetrics& metrics, grpc::CallbackServerContext* context,
             v1::UploadAdapterResponse* response);
  void OnReadDone(bool ok) override;
  void OnCancel() override { record_.OnCancel(); }
  void OnDone() override;

  absl::Status Admit();

  // The steps. Each leads to another one or to End.
  void TakeMessage();
  void CommitAndLoad();
  void Loaded(const absl::StatusOr<LoadResult>& result);
  void End(const absl::Status& status);

  absl::Status Take();
  absl::Status TakeStart(const v1::UploadStart& start);
  absl::Status TakeChunk(const v1::UploadChunk& chunk);
  absl::Status Commit(StoredContent& stored);

  ControlPlane& plane_;
  v1::UploadAdapterResponse* const response_;
  CallRecord record_;
  std::shared_ptr<UploadCall> self_;  // gRPC's share

  // Of the step that goes on.
  v1::UploadAdapterRequest message_;
  LoadRequest load_;
  std::unique_ptr<IncomingContent> incoming_;  // from `start` until it is stored
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_UPLOAD_CALL_H_
