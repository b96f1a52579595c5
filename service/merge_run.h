// What a Merge request asks of its adapters, and the answer.
#ifndef ADAPTERD_SERVICE_MERGE_RUN_H_
#define ADAPTERD_SERVICE_MERGE_RUN_H_

#include <vector>

#include "absl/status/status.h"
#include "adapterd/v1/merge_service.pb.h"
#include "service/data_plane.h"
#include "service/merge_plan.h"
#include "service/rpc_call.h"

namespace adapterd {

// Runs on a worker. `handles` has one entry for each of the plan's references.
absl::Status RunMerge(DataPlane& plane, const RpcCall& call, const MergePlan& plan,
                      const v1::MergeRequest& request, const std::vector<AdapterHandle>& handles,
                      v1::MergeResponse& response);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MERGE_RUN_H_
