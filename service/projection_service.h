// ApplyProjection, StreamProjections and Forward.
#ifndef ADAPTERD_SERVICE_PROJECTION_SERVICE_H_
#define ADAPTERD_SERVICE_PROJECTION_SERVICE_H_

#include "adapterd/v1/projection_service.grpc.pb.h"
#include "service/data_plane.h"
#include "service/long_calls.h"

namespace adapterd {

// Messages come and go as raw buffers (tensor_message.h); the wire format is that of the .proto.
class ProjectionService final : public v1::ProjectionService::WithRawCallbackMethod_ApplyProjection<
                                    v1::ProjectionService::WithRawCallbackMethod_StreamProjections<
                                        v1::ProjectionService::WithRawCallbackMethod_Forward<
                                            v1::ProjectionService::Service>>> {
 public:
  explicit ProjectionService(DataPlane& plane);

  grpc::ServerUnaryReactor* ApplyProjection(grpc::CallbackServerContext* context,
                                            const grpc::ByteBuffer* request,
                                            grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StreamProjections(
      grpc::CallbackServerContext* context) override;

  grpc::ServerUnaryReactor* Forward(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;

  // For a drain, which streams must not hold up.
  LongCalls& streams() { return streams_; }

 private:
  DataPlane& plane_;
  LongCalls streams_;
  RpcMetrics& apply_metrics_;
  RpcMetrics& stream_metrics_;
  RpcMetrics& forward_metrics_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PROJECTION_SERVICE_H_
