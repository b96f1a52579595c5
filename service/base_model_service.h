// BaseModelService: base models in memory, and adapters merged into them.
#ifndef ADAPTERD_SERVICE_BASE_MODEL_SERVICE_H_
#define ADAPTERD_SERVICE_BASE_MODEL_SERVICE_H_

#include <memory>

#include "adapterd/v1/base_model_service.grpc.pb.h"
#include "core/base_model/hosted_bases.h"
#include "service/adapter_service.h"

namespace adapterd {

// Handlers run on gRPC's threads and only check and hand over: loads to I/O threads, merges to
// workers, one after the other for each base, weights to the threads that wait for slow clients.
class BaseModelService final : public v1::BaseModelService::CallbackService {
 public:
  // Both outlive it.
  BaseModelService(ControlPlane& plane, HostedBases& bases);

  grpc::ServerUnaryReactor* LoadBaseModel(grpc::CallbackServerContext* context,
                                          const v1::LoadBaseModelRequest* request,
                                          v1::LoadBaseModelResponse* response) override;
  grpc::ServerUnaryReactor* UnloadBaseModel(grpc::CallbackServerContext* context,
                                            const v1::UnloadBaseModelRequest* request,
                                            v1::UnloadBaseModelResponse* response) override;
  grpc::ServerUnaryReactor* ListBaseModels(grpc::CallbackServerContext* context,
                                           const v1::ListBaseModelsRequest* request,
                                           v1::ListBaseModelsResponse* response) override;
  grpc::ServerUnaryReactor* MergeAdapter(grpc::CallbackServerContext* context,
                                         const v1::MergeAdapterRequest* request,
                                         v1::MergeAdapterResponse* response) override;
  grpc::ServerUnaryReactor* UnmergeAdapter(grpc::CallbackServerContext* context,
                                           const v1::UnmergeAdapterRequest* request,
                                           v1::UnmergeAdapterResponse* response) override;
  grpc::ServerWriteReactor<v1::GetBaseWeightResponse>* GetBaseWeight(
      grpc::CallbackServerContext* context, const v1::GetBaseWeightRequest* request) override;

 private:
  std::shared_ptr<RpcCall> Start(RpcMetrics& metrics, grpc::CallbackServerContext* context,
                                 const google::protobuf::Message& request);
  // With the handles that it needs.
  void Merge(const std::shared_ptr<RpcCall>& call, const v1::MergeAdapterRequest& request,
             BaseMergeRequest merge, v1::MergeAdapterResponse& response);

  ControlPlane& plane_;
  HostedBases& bases_;
  RpcMetrics& load_;
  RpcMetrics& unload_;
  RpcMetrics& list_;
  RpcMetrics& merge_;
  RpcMetrics& unmerge_;
  RpcMetrics& get_weight_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_BASE_MODEL_SERVICE_H_
