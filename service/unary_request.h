// A DataRequest behind a unary RPC whose messages come and go as raw buffers.
#ifndef ADAPTERD_SERVICE_UNARY_REQUEST_H_
#define ADAPTERD_SERVICE_UNARY_REQUEST_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <utility>

#include "service/data_request.h"
#include "service/rpc_call.h"

namespace adapterd {

// Starts a Job (ProjectionRequest, MergeRequest) for what the client sent; its answer ends the
// call.
template <typename Job>
grpc::ServerUnaryReactor* StartUnary(DataPlane& plane, RpcMetrics& metrics,
                                     grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  auto call = RpcCall::Start(plane.environment, metrics, Plane::kData, context,
                             static_cast<int64_t>(request->Length()));
  if (call->answered()) return call.get();
  auto read = [&plane, request](typename Job::Request& message) {
    absl::Status status = message.Split(*request, plane.buffers);
    // It was copied. gRPC made it for this call and only shows it as constant.
    const_cast<grpc::ByteBuffer*>(request)->Clear();
    return status;
  };
  auto done = [call, response](absl::StatusOr<typename Job::Response> reply) {
    if (reply.ok()) *response = (*std::move(reply)).Join();
    if (call->Claim()) call->Answer(reply.status(), static_cast<int64_t>(response->Length()));
  };
  auto job = std::make_shared<Job>(plane, call->deadline(), std::move(read), std::move(done));
  call->WhenCancelled([job] { job->Cancel(); });
  job->Start(call->request_bytes());
  return call.get();
}

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_UNARY_REQUEST_H_
