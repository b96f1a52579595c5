// Merge.
#ifndef ADAPTERD_SERVICE_MERGE_SERVICE_H_
#define ADAPTERD_SERVICE_MERGE_SERVICE_H_

#include "adapterd/v1/merge_service.grpc.pb.h"
#include "service/data_plane.h"

namespace adapterd {

// Messages come and go as raw buffers (tensor_message.h); the wire format is that of the .proto.
class MergeService final
    : public v1::MergeService::WithRawCallbackMethod_Merge<v1::MergeService::Service> {
 public:
  explicit MergeService(DataPlane& plane);

  grpc::ServerUnaryReactor* Merge(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;

 private:
  DataPlane& plane_;
  RpcMetrics& merge_metrics_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MERGE_SERVICE_H_
