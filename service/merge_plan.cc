#include "service/merge_plan.h"

#include <fmt/format.h>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/registry/module_merge.h"
#include "service/adapter_convert.h"

namespace adapterd {
namespace {

absl::Status Invalid(const std::string& field, const std::string& what) {
  return Error(Reason::kInvalidField, fmt::format("{}: {}", field, what)).With("field", field);
}

}  // namespace

absl::StatusOr<WeightLayout> LayoutFromProto(v1::WeightLayout layout, const std::string& field) {
  switch (layout) {
    case v1::WEIGHT_LAYOUT_UNSPECIFIED:
    case v1::WEIGHT_LAYOUT_OUT_IN:
      return WeightLayout::kOutIn;
    case v1::WEIGHT_LAYOUT_IN_OUT:
      return WeightLayout::kInOut;
    default:
      return Invalid(field, fmt::format("unknown value {}", static_cast<int>(layout)));
  }
}

absl::StatusOr<MergePlan> PlanMerge(const TensorMessage<v1::MergeRequest>& received) {
  const v1::MergeRequest& request = received.message;
  const TensorPayloads& payloads = received.payloads;
  MergePlan plan;
  if (!request.has_weight()) return Invalid("weight", "missing");
  ASSIGN_OR_RETURN(plan.weight, FloatTensor::Read(request.weight(), payloads, "weight"));
  if (plan.weight.shape().empty()) {
    return ShapeError("weight", "at least one dimension", plan.weight.shape());
  }
  ASSIGN_OR_RETURN(plan.layout, LayoutFromProto(request.weight_layout(), "weight_layout"));
  plan.allow_non_finite = request.allow_non_finite();
  plan.skip_untargeted = request.skip_untargeted();
  if (request.has_bias()) {
    ASSIGN_OR_RETURN(plan.bias, FloatTensor::Read(request.bias(), payloads, "bias"));
    if (plan.bias->shape().size() != 1) {
      return ShapeError("bias", "one dimension", plan.bias->shape());
    }
  }
  ASSIGN_OR_RETURN(plan.selector, SelectorFromProto(request.module(), "module"));
  if (request.adapters().empty()) {
    return Invalid("adapters", "expected at least one, found none");
  }
  for (int i = 0; i < request.adapters_size(); ++i) {
    ASSIGN_OR_RETURN(const AdapterRefs::Use use,
                     plan.adapters.Add(request.adapters(i), fmt::format("adapters[{}]", i)));
    plan.uses.push_back(use);
  }
  return plan;
}

}  // namespace adapterd
