// Merge, MergeStream, MergeCheckpoint.
#ifndef ADAPTERD_SERVICE_MERGE_SERVICE_H_
#define ADAPTERD_SERVICE_MERGE_SERVICE_H_

#include <atomic>

#include "adapterd/v1/merge_service.grpc.pb.h"
#include "service/checkpoint_call.h"
#include "service/data_plane.h"

namespace adapterd {

// Messages of Merge come and go as raw buffers (tensor_message.h); the wire format is that of the
// .proto.
class MergeService final
    : public v1::MergeService::WithRawCallbackMethod_Merge<
          v1::MergeService::WithCallbackMethod_MergeStream<
              v1::MergeService::WithCallbackMethod_MergeCheckpoint<v1::MergeService::Service>>> {
 public:
  MergeService(DataPlane& plane, CheckpointPlane& checkpoints);

  grpc::ServerUnaryReactor* Merge(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<v1::MergeStreamRequest, v1::MergeStreamResponse>* MergeStream(
      grpc::CallbackServerContext* context) override;
  grpc::ServerWriteReactor<v1::MergeCheckpointResponse>* MergeCheckpoint(
      grpc::CallbackServerContext* context, const v1::MergeCheckpointRequest* request) override;

 private:
  DataPlane& plane_;
  CheckpointPlane& checkpoints_;
  std::atomic<int> streams_{0};  // that are open
  RpcMetrics& merge_metrics_;
  RpcMetrics& stream_metrics_;
  RpcMetrics& checkpoint_metrics_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MERGE_SERVICE_H_
