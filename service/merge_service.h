// Merge.
#ifndef ADAPTERD_SERVICE_MERGE_SERVICE_H_
#define ADAPTERD_SERVICE_MERGE_SERVICE_H_

#include "adapterd/v1/merge_service.grpc.pb.h"
#include "service/data_plane.h"

namespace adapterd {

// Handlers run on gRPC's threads and only check; the arithmetic runs on the workers.
class MergeService final : public v1::MergeService::CallbackService {
 public:
  explicit MergeService(DataPlane& plane);

  grpc::ServerUnaryReactor* Merge(grpc::CallbackServerContext* context,
                                  const v1::MergeRequest* request,
                                  v1::MergeResponse* response) override;

 private:
  DataPlane& plane_;
  RpcMetrics& merge_metrics_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MERGE_SERVICE_H_
