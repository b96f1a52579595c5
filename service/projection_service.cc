#include "service/projection_service.h"

#include "core/base/status_macros.h"
#include "service/projection_plan.h"
#include "service/projection_run.h"

namespace adapterd {

ProjectionService::ProjectionService(DataPlane& plane)
    : plane_(plane),
      apply_metrics_(
          plane.environment.metrics.Rpc("adapterd.v1.ProjectionService", "ApplyProjection")) {}

grpc::ServerUnaryReactor* ProjectionService::ApplyProjection(
    grpc::CallbackServerContext* context, const v1::ApplyProjectionRequest* request,
    v1::ApplyProjectionResponse* response) {
  auto call = RpcCall::Start(plane_.environment, apply_metrics_, Plane::kData, context, *request);
  if (call->answered()) return call.get();
  absl::StatusOr<Admission::Ticket> admitted = plane_.admission.Admit(call->request_bytes());
  absl::StatusOr<ProjectionPlan> plan =
      admitted.ok() ? PlanProjection(*request) : admitted.status();
  if (!plan.ok()) {
    if (call->Claim()) call->Answer(plan.status());
    return call.get();
  }
  std::vector<AdapterRef> refs = plan->adapters.refs();
  const bool skip_disabled = plan->skip_disabled;
  RunWithAdapters(plane_, call, *response, std::move(refs), skip_disabled,
                  [this, call, response, plan = *std::move(plan), admitted = *std::move(admitted)](
                      std::vector<AdapterHandle> handles, absl::Duration queued) mutable {
                    plane_.environment.metrics.Apply(ApplyStage::kQueue, queued);
                    return RunProjection(plane_, *call, plan, handles, admitted, *response);
                  });
  return call.get();
}

}  // namespace adapterd
