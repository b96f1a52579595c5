#include "service/merge_service.h"

#include <fmt/format.h>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/compute/merge.h"
#include "service/adapter_convert.h"
#include "service/adapter_refs.h"
#include "service/tensor_convert.h"

namespace adapterd {
namespace {

// A Merge request, checked as far as it can be without its adapters. Views the request.
struct MergePlan {
  FloatTensor weight;
  std::optional<FloatTensor> bias;
  ModuleSelector selector;
  MergeOptions options;
  bool skip_untargeted = false;
  AdapterRefs adapters;
  std::vector<AdapterRefs::Use> uses;

  int64_t rows() const { return weight.shape()[0]; }
  int64_t cols() const { return weight.shape()[1]; }
  int64_t out_features() const { return options.layout == WeightLayout::kOutIn ? rows() : cols(); }
  int64_t in_features() const { return options.layout == WeightLayout::kOutIn ? cols() : rows(); }
};

absl::Status Invalid(const std::string& field, const std::string& what) {
  return Error(Reason::kInvalidField, fmt::format("{}: {}", field, what)).With("field", field);
}

absl::Status ShapeError(const std::string& field, const std::string& expected,
                        const Shape& actual) {
  return Error(Reason::kShapeMismatch,
               fmt::format("{}: expected {}, found {}", field, expected, ShapeString(actual)))
      .With("field", field)
      .With("expected", expected)
      .With("actual", ShapeString(actual));
}

absl::StatusOr<WeightLayout> LayoutFromProto(v1::WeightLayout layout) {
  switch (layout) {
    case v1::WEIGHT_LAYOUT_UNSPECIFIED:
    case v1::WEIGHT_LAYOUT_OUT_IN:
      return WeightLayout::kOutIn;
    case v1::WEIGHT_LAYOUT_IN_OUT:
      return WeightLayout::kInOut;
    default:
      return Invalid("weight_layout", fmt::format("unknown value {}", static_cast<int>(layout)));
  }
}

absl::StatusOr<MergePlan> PlanMerge(const v1::MergeRequest& request) {
  MergePlan plan;
  if (!request.has_weight()) return Invalid("weight", "missing");
  ASSIGN_OR_RETURN(plan.weight, FloatTensor::Read(request.weight(), "weight"));
  if (plan.weight.shape().size() != 2) {
    return ShapeError("weight", "two dimensions", plan.weight.shape());
  }
  ASSIGN_OR_RETURN(plan.options.layout, LayoutFromProto(request.weight_layout()));
  plan.options.allow_non_finite = request.allow_non_finite();
  plan.skip_untargeted = request.skip_untargeted();
  if (request.has_bias()) {
    ASSIGN_OR_RETURN(plan.bias, FloatTensor::Read(request.bias(), "bias"));
    const Shape expected = {plan.out_features()};
    if (plan.bias->shape() != expected) {
      return ShapeError("bias", ShapeString(expected), plan.bias->shape());
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

absl::Status CheckShape(const MergePlan& plan, const ModuleInfo& module, const AdapterRef& ref) {
  if (plan.in_features() == module.in_features && plan.out_features() == module.out_features) {
    return absl::OkStatus();
  }
  Shape expected = {module.out_features, module.in_features};
  if (plan.options.layout == WeightLayout::kInOut) std::swap(expected[0], expected[1]);
  return Annotate(Annotate(ShapeError("weight", ShapeString(expected), plan.weight.shape()),
                           "adapter", ref.name),
                  "module", module.path);
}

absl::StatusOr<std::vector<MergeTerm>> Terms(const MergePlan& plan,
                                             const std::vector<AdapterHandle>& handles,
                                             std::vector<bool>& used) {
  std::vector<MergeTerm> terms;
  for (const AdapterRefs::Use& use : plan.uses) {
    const AdapterRef& ref = plan.adapters.refs()[use.ref];
    ASSIGN_OR_RETURN(auto module, ResolveModule(handles[use.ref], ref, plan.selector, "module",
                                                plan.skip_untargeted));
    if (!module) continue;
    RETURN_IF_ERROR(CheckShape(plan, *module->info, ref));
    used[use.ref] = true;
    const ModuleFactors& factors = handles[use.ref]->adapter().factors(module->index);
    terms.push_back(
        {AsMatrix(factors.lora_a), AsMatrix(factors.lora_b), use.weight * module->info->scale});
  }
  return terms;
}

void FillStats(const MergeStats& stats, v1::MergeStats& out) {
  out.set_max_abs_delta(stats.max_abs_delta);
  out.set_max_abs_rounding_error(stats.max_abs_rounding_error);
  out.set_relative_rounding_error(stats.relative_rounding_error);
  out.set_zeroed_elements(stats.zeroed_elements);
  out.set_non_finite_elements(stats.non_finite_elements);
}

absl::Status RunMerge(DataPlane& plane, const RpcCall& call, const MergePlan& plan,
                      const v1::MergeRequest& request, const std::vector<AdapterHandle>& handles,
                      v1::MergeResponse& response) {
  std::vector<bool> used(handles.size(), false);
  ASSIGN_OR_RETURN(const std::vector<MergeTerm> terms, Terms(plan, handles, used));
  TensorWriter writer(*response.mutable_weight(), plan.weight.dtype(), plan.weight.shape(),
                      plan.weight.readable());
  const MatrixView weight = {plan.weight.dtype(), plan.rows(), plan.cols(), plan.weight.data()};
  const absl::Time start = absl::Now();
  absl::StatusOr<MergeStats> stats =
      MergeWeight(plane.kernels, plane.workers, weight, terms, plan.options,
                  {weight.dtype, weight.rows, weight.cols, writer.data()}, call.cancellation());
  if (!stats.ok()) return stats.status();
  plane.environment.metrics.Merge(absl::Now() - start, weight.bytes());
  writer.Finish();
  FillStats(*stats, *response.mutable_stats());
  if (request.has_bias()) *response.mutable_bias() = request.bias();
  AddUses(plan.adapters.refs(), handles, used, *response.mutable_adapters());
  return absl::OkStatus();
}

}  // namespace

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
      plane_, call, *response, std::move(refs),
      [this, call, request, response, plan = *std::move(plan), admitted = *std::move(admitted)](
          std::vector<AdapterHandle> handles, absl::Duration) mutable {
        return RunMerge(plane_, *call, plan, *request, handles, *response);
      });
  return call.get();
}

}  // namespace adapterd
