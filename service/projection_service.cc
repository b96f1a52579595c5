#include "service/projection_service.h"

#include "service/forward_request.h"
#include "service/projection_request.h"
#include "service/projection_stream.h"
#include "service/unary_request.h"

namespace adapterd {
namespace {

constexpr char kService[] = "adapterd.v1.ProjectionService";

}  // namespace

ProjectionService::ProjectionService(DataPlane& plane)
    : plane_(plane),
      streams_(kMaxProjectionStreams, "streams of projections"),
      apply_metrics_(plane.environment.metrics.Rpc(kService, "ApplyProjection")),
      stream_metrics_(plane.environment.metrics.Rpc(kService, "StreamProjections")),
      forward_metrics_(plane.environment.metrics.Rpc(kService, "Forward")) {}

grpc::ServerUnaryReactor* ProjectionService::ApplyProjection(grpc::CallbackServerContext* context,
                                                             const grpc::ByteBuffer* request,
                                                             grpc::ByteBuffer* response) {
  return StartUnary<ProjectionRequest>(plane_, apply_metrics_, context, request, response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ProjectionService::StreamProjections(
    grpc::CallbackServerContext* context) {
  return ProjectionStream::Start(plane_, streams_, stream_metrics_, context).get();
}

grpc::ServerUnaryReactor* ProjectionService::Forward(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return StartUnary<ForwardRequest>(plane_, forward_metrics_, context, request, response);
}

}  // namespace adapterd
