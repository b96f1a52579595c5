// Messages of BaseModelService to requests of core and back.
#ifndef ADAPTERD_SERVICE_BASE_MODEL_CONVERT_H_
#define ADAPTERD_SERVICE_BASE_MODEL_CONVERT_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adapterd/v1/base_model_service.pb.h"
#include "core/base_model/hosted_bases.h"
#include "service/adapter_refs.h"

namespace adapterd {

inline constexpr int64_t kWeightPieceBytes = 1 << 20;

// INVALID_FIELD.
absl::StatusOr<BaseLoadRequest> BaseLoadFromProto(const v1::LoadBaseModelRequest& request);

// What a merge asks of the registry, and of the base once it has handles, one for each of `refs`.
struct BaseMergePlan {
  AdapterRefs refs;
  std::vector<AdapterRefs::Use> uses;

  BaseMergeRequest Request(const v1::MergeAdapterRequest& request,
                           std::vector<AdapterHandle> handles) const;
};

// INVALID_FIELD.
absl::StatusOr<BaseMergePlan> PlanBaseMerge(const v1::MergeAdapterRequest& request);
absl::StatusOr<BaseUnmergeRequest> BaseUnmergeFromProto(const v1::UnmergeAdapterRequest& request);

// As it stands at this instant.
void ToProto(const NamedBase& base, v1::BaseModel& out);

// Hands the weight that the request names to `write`, some rows a message, and stops at its first
// error. INVALID_FIELD, MODULE_NOT_TARGETED.
absl::Status WriteBaseWeight(
    const NamedBase& base, const v1::GetBaseWeightRequest& request,
    const std::function<absl::Status(const v1::GetBaseWeightResponse&)>& write);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_BASE_MODEL_CONVERT_H_
