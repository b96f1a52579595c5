#include "service/merge_service.h"

#include "service/merge_request.h"
#include "service/unary_request.h"

namespace adapterd {

MergeService::MergeService(DataPlane& plane)
    : plane_(plane),
      merge_metrics_(plane.environment.metrics.Rpc("adapterd.v1.MergeService", "Merge")) {}

grpc::ServerUnaryReactor* MergeService::Merge(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer* request,
                                              grpc::ByteBuffer* response) {
  return StartUnary<MergeRequest>(plane_, merge_metrics_, context, request, response);
}

}  // namespace adapterd
