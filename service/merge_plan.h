// A Merge request, checked as far as it can be without its adapters.
#ifndef ADAPTERD_SERVICE_MERGE_PLAN_H_
#define ADAPTERD_SERVICE_MERGE_PLAN_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "adapterd/v1/merge_service.pb.h"
#include "core/compute/merge.h"
#include "service/adapter_refs.h"
#include "service/tensor_convert.h"
#include "service/tensor_message.h"

namespace adapterd {

// Views the request, which must outlive it.
struct MergePlan {
  FloatTensor weight;               // at least one dimension
  std::optional<FloatTensor> bias;  // one dimension
  ModuleSelector selector;
  WeightLayout layout = WeightLayout::kOutIn;
  bool allow_non_finite = false;
  bool skip_untargeted = false;
  AdapterRefs adapters;
  std::vector<AdapterRefs::Use> uses;  // at least one
};

// INVALID_FIELD for an unknown value; `field` is what errors call it.
absl::StatusOr<WeightLayout> LayoutFromProto(v1::WeightLayout layout, const std::string& field);

// INVALID_FIELD, SHAPE_MISMATCH, UNSUPPORTED_DTYPE, NOT_IMPLEMENTED.
absl::StatusOr<MergePlan> PlanMerge(const TensorMessage<v1::MergeRequest>& received);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MERGE_PLAN_H_
