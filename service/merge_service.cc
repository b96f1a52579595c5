#include "service/merge_service.h"

#include "service/merge_plan.h"
#include "service/merge_run.h"

namespace adapterd {

MergeService::MergeService(DataPlane& plane)
    : plane_(plane),
      merge_metrics_(plane.environment.metrics.Rpc("adapterd.v1.MergeService", "Merge")) {}

grpc::ServerUnaryReactor* MergeService::Merge(grpc::CallbackServerContext* context,
                                              const v1::MergeRequest* request,
                                              v1::MergeResponse* response) {
  auto call = RpcCall::Start(plane_.environment, merge_metrics_, Plane::kData, context, *request);
  if (call->answered()) return call.get();
  // The reply is as large as the request.
  absl::StatusOr<Admission::Ticket> admitted = plane_.admission.Admit(2 * call->request_bytes());
  absl::StatusOr<MergePlan> plan = admitted.ok() ? PlanMerge(*request) : admitted.status();
  if (!plan.ok()) {
    if (call->Claim()) call->Answer(plan.status());
    return call.get();
  }
  std::vector<AdapterRef> refs = plan->adapters.refs();
  RunWithAdapters(
      plane_, call, *response, std::move(refs), /*skip_disabled=*/false,
      [this, call, request, response, plan = *std::move(plan), admitted = *std::move(admitted)](
          std::vector<AdapterHandle> handles, absl::Duration) mutable {
        return RunMerge(plane_, *call, plan, *request, handles, *response);
      });
  return call.get();
}

}  // namespace adapterd
