// An ApplyProjection request, run against its adapters.
#ifndef ADAPTERD_SERVICE_PROJECTION_RUN_H_
#define ADAPTERD_SERVICE_PROJECTION_RUN_H_

#include <vector>

#include "absl/status/status.h"
#include "service/data_plane.h"
#include "service/projection_plan.h"

namespace adapterd {

// Resolves the modules, checks their shapes, computes and fills `response`. `handles` belong to
// plan.adapters.refs(), in order; `admitted` grows by the bytes of the reply. On a worker.
absl::Status RunProjection(DataPlane& plane, const RpcCall& call, const ProjectionPlan& plan,
                           const std::vector<AdapterHandle>& handles, Admission::Ticket& admitted,
                           v1::ApplyProjectionResponse& response);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PROJECTION_RUN_H_
