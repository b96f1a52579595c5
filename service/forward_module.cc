#include "service/forward_module.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/term_resolve.h"

namespace adapterd {
namespace {

absl::Status Invalid(const std::string& what) {
  return Error(Reason::kInvalidField, "module: " + what).With("field", "module");
}

bool IsNotTargeted(const absl::Status& status) {
  return !status.ok() && GetErrorDetails(status).reason == Reason::kModuleNotTargeted;
}

// The selectors that may mean the module at `path` elsewhere: prefixes differ between a model with
// and without its head, between checkpoints and adapters.
std::vector<ModuleSelector> OtherNames(const std::string& path, std::optional<int32_t> expert) {
  std::vector<ModuleSelector> names = {{.path = path, .target = "", .layer = {}, .expert = expert},
                                       {.path = "", .target = path, .layer = {}, .expert = expert}};
  const size_t dot = path.find('.');
  if (dot != std::string::npos) {
    names.push_back({.path = path.substr(dot + 1), .target = "", .layer = {}, .expert = expert});
  }
  return names;
}

absl::StatusOr<size_t> FindInBase(const ModuleSelector& selector, const HostedBase& base) {
  absl::StatusOr<size_t> found = base.Find(selector);
  if (selector.path.empty() || !IsNotTargeted(found.status())) return found;
  for (const ModuleSelector& name : OtherNames(selector.path, {})) {
    absl::StatusOr<size_t> other = base.index().Find(name);
    if (!IsNotTargeted(other.status())) return other;
  }
  return found;
}

WeightLayout LayoutOf(const ForwardPlan& plan, const ModuleSnapshot& snapshot) {
  const HostedModule& module = *snapshot.module;
  BaseLayout layout = module.layout;
  if (module.is_parameter && module.shape.size() == 3 &&
      HasTransposedExperts(snapshot.base->geometry())) {
    layout = BaseLayout::kInOut;
  }
  if (snapshot.merged != nullptr) layout = snapshot.merged->adapters().front().layout;
  if (plan.ids() != nullptr) layout = BaseLayout::kInOut;
  return layout == BaseLayout::kInOut ? WeightLayout::kInOut : WeightLayout::kOutIn;
}

absl::Status ReadWeight(const ForwardPlan& plan, ForwardModule& module) {
  const HostedModule& hosted = *module.snapshot.module;
  const std::optional<MatrixView> dense = module.snapshot.weight();
  const DType dtype = dense ? dense->dtype : hosted.dtype;
  ASSIGN_OR_RETURN(const MatrixView matrix,
                   MatrixOfWeight(dtype, hosted.shape, dense ? dense->data : nullptr,
                                  hosted.is_parameter, plan.selector.expert, hosted.path));
  if (dense) {
    module.weight.stored = matrix;
  } else {
    module.weight.stored = hosted.nf4.get();
  }
  module.weight.layout = LayoutOf(plan, module.snapshot);
  return absl::OkStatus();
}

absl::Status ReadScale(const ForwardPlan& plan, ForwardModule& module) {
  if (plan.ids() == nullptr) return absl::OkStatus();
  const auto scale = EmbeddingScale(module.snapshot.base->geometry(), module.path());
  if (!scale) {
    return Error(Reason::kUnsupportedAdapter,
                 fmt::format("module {} may scale its embeddings, by what is not known",
                             module.path()))
        .With("module", module.path());
  }
  module.embedding_scale = *scale;
  return absl::OkStatus();
}

}  // namespace

const MergedAdapter* ForwardModule::FindMerged(const std::string& name) const {
  if (snapshot.merged == nullptr) return nullptr;
  const std::vector<MergedAdapter>& merged = snapshot.merged->adapters();
  const auto found = std::ranges::find(merged, name, &MergedAdapter::name);
  return found == merged.end() ? nullptr : &*found;
}

absl::StatusOr<MatrixView> MatrixOfWeight(DType dtype, const Shape& shape, const std::byte* data,
                                          bool is_parameter, std::optional<int32_t> expert,
                                          const std::string& path) {
  const bool has_experts = is_parameter && shape.size() == 3;
  if (shape.size() < 2) {
    return Invalid(
        fmt::format("{} has a weight of shape {}, which is no matrix", path, ShapeString(shape)));
  }
  if (has_experts) {
    if (!expert || *expert >= shape[0]) {
      return Invalid(fmt::format("{} needs an expert from 0 to {}, found {}", path, shape[0] - 1,
                                 expert ? std::to_string(*expert) : "none"));
    }
    const MatrixView all = {dtype, shape[0] * shape[1], shape[2], data};
    return all.Rows(*expert * shape[1], shape[1]);
  }
  if (expert) return Invalid(fmt::format("{} has no experts, found expert {}", path, *expert));
  int64_t kernel = 1;
  for (size_t i = 2; i < shape.size(); ++i) kernel *= shape[i];
  if (kernel == 1) return MatrixView{dtype, shape[0], shape[1], data};
  return Error(Reason::kUnsupportedAdapter,
               fmt::format("module {} is a convolution of {} elements: a projection of rows cannot "
                           "apply it",
                           path, kernel))
      .With("module", path);
}

absl::StatusOr<ForwardModule> FindForwardModule(const ForwardPlan& plan, const HostedBase& base) {
  const absl::StatusOr<size_t> found = FindInBase(plan.selector, base);
  if (!found.ok()) return Annotate(found.status(), "field", "module");
  ForwardModule module;
  module.snapshot = base.Snapshot(*found);
  RETURN_IF_ERROR(ReadWeight(plan, module));
  RETURN_IF_ERROR(ReadScale(plan, module));
  const Tensor* bias = module.snapshot.bias();
  if (bias != nullptr && plan.ids() == nullptr) {
    module.bias = {bias->dtype(), 1, bias->shape()[0], bias->bytes().data()};
  }
  return module;
}

absl::StatusOr<std::optional<ResolvedModule>> FindInAdapter(const ForwardPlan& plan,
                                                            const ForwardModule& module,
                                                            const AdapterHandle& handle,
                                                            const AdapterRef& ref) {
  using Found = std::optional<ResolvedModule>;
  if (handle.empty()) return Found();
  if (!handle.manifest().peft.layer_replication.empty()) {
    return Error(
               Reason::kUnsupportedAdapter,
               fmt::format("adapter \"{}\" counts the layers of a stack that it replicates, which "
                           "a base model in memory does not have",
                           ref.name))
        .With("adapter", ref.name);
  }
  for (const ModuleSelector& name : OtherNames(module.path(), plan.selector.expert)) {
    ASSIGN_OR_RETURN(const Found found, ResolveModule(handle, ref, name, "module",
                                                      /*skip_untargeted=*/true));
    if (found) return found;
  }
  // What else the request's own words mean in the adapter may be another tower's module; only one
  // without a layer serves all.
  ASSIGN_OR_RETURN(const Found found,
                   ResolveModule(handle, ref, plan.selector, "module", /*skip_untargeted=*/true));
  if (found && !LayerOf(found->info->path)) return found;
  if (plan.skip_untargeted) return Found();
  return Error(Reason::kModuleNotTargeted,
               fmt::format("adapter \"{}\" does not target module {} of base model \"{}\"",
                           ref.name, module.path(), plan.base_model))
      .With("adapter", ref.name)
      .With("module", module.path())
      .With("field", "module");
}

absl::StatusOr<WeightLayout> LayoutFor(const ForwardModule& module, const ModuleInfo& info,
                                       bool fan_in_fan_out) {
  const HostedModule& hosted = *module.snapshot.module;
  const BaseGeometry& geometry = module.snapshot.base->geometry();
  if (const auto layout = LayoutOfWeight(info, hosted.shape, geometry, fan_in_fan_out)) {
    return *layout == BaseLayout::kInOut ? WeightLayout::kInOut : WeightLayout::kOutIn;
  }
  const std::string expected = ExpectedShape(info, geometry, fan_in_fan_out);
  return Error(Reason::kShapeMismatch,
               fmt::format("module {} of the base model has shape {}, the adapter expects {}",
                           hosted.path, ShapeString(hosted.shape), expected))
      .With("expected", expected)
      .With("actual", ShapeString(hosted.shape));
}

}  // namespace adapterd
