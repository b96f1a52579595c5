#include "service/merge_service.h"

#include "service/merge_request.h"
#include "service/merge_stream.h"
#include "service/unary_request.h"

namespace adapterd {

namespace {

constexpr char kService[] = "adapterd.v1.MergeService";

}  // namespace

MergeService::MergeService(DataPlane& plane, CheckpointPlane& checkpoints)
    : plane_(plane),
      checkpoints_(checkpoints),
      merge_metrics_(plane.environment.metrics.Rpc(kService, "Merge")),
      stream_metrics_(plane.environment.metrics.Rpc(kService, "MergeStream")),
      checkpoint_metrics_(plane.environment.metrics.Rpc(kService, "MergeCheckpoint")) {}

grpc::ServerUnaryReactor* MergeService::Merge(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer* request,
                                              grpc::ByteBuffer* response) {
  return StartUnary<MergeRequest>(plane_, merge_metrics_, context, request, response);
}

grpc::ServerBidiReactor<v1::MergeStreamRequest, v1::MergeStreamResponse>* MergeService::MergeStream(
    grpc::CallbackServerContext* context) {
  return MergeStreamCall::Start(plane_, streams_, stream_metrics_, context).get();
}

grpc::ServerWriteReactor<v1::MergeCheckpointResponse>* MergeService::MergeCheckpoint(
    grpc::CallbackServerContext* context, const v1::MergeCheckpointRequest* request) {
  return StartCheckpointMerge(checkpoints_, checkpoint_metrics_, context, *request).get();
}

}  // namespace adapterd
