// ApplyProjection.
#ifndef ADAPTERD_SERVICE_PROJECTION_SERVICE_H_
#define ADAPTERD_SERVICE_PROJECTION_SERVICE_H_

#include "adapterd/v1/projection_service.grpc.pb.h"
#include "service/data_plane.h"

namespace adapterd {

// Handlers run on gRPC's threads and only check; the arithmetic runs on the workers.
class ProjectionService final : public v1::ProjectionService::CallbackService {
 public:
  explicit ProjectionService(DataPlane& plane);

  grpc::ServerUnaryReactor* ApplyProjection(grpc::CallbackServerContext* context,
                                            const v1::ApplyProjectionRequest* request,
                                            v1::ApplyProjectionResponse* response) override;

 private:
  DataPlane& plane_;
  RpcMetrics& apply_metrics_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PROJECTION_SERVICE_H_
