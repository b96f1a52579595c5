// What a composition checks before it begins, and what its result will look like.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>

#include "core/adapter/made_adapter.h"
#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/compose/composition.h"

namespace adapterd {
namespace {

Error Invalid(std::string_view field, const std::string& what) {
  return Error(Reason::kInvalidField, fmt::format("{}: {}", field, what))
      .With("field", std::string(field));
}

// What the module has that a composition would lose, or cannot have; empty: nothing.
std::string_view WhyUnsupported(const ModuleInfo& module) {
  if (module.has_magnitude) return "a DoRA magnitude, which no sum of adapters has";
  if (module.has_lora_bias) return "a bias of lora_B";
  if (module.kind == ModuleKind::kReplacement) return "weights that take the place of the base's";
  if (module.replaces_bias) return "a bias that takes the place of the base's";
  if (module.kind == ModuleKind::kExperts) return "several experts";
  if (!module.parameter.empty()) return "a parameter instead of a module";
  return "";
}

absl::Status CheckModules(const ComposeInput& input) {
  for (const ModuleInfo& module : input.manifest->modules) {
    const std::string_view why = WhyUnsupported(module);
    if (why.empty()) continue;
    return Error(Reason::kUnsupportedAdapter,
                 fmt::format("adapter \"{}\" cannot be composed: module {} has {}", input.name,
                             module.path, why))
        .With("adapter", input.name)
        .With("module", module.path);
  }
  return absl::OkStatus();
}

std::string ShapeOf(const ModuleInfo& module) {
  return fmt::format("{} -> {} features, kernel {}", module.in_features, module.out_features,
                     ShapeString(module.kernel));
}

absl::Status CheckSameShape(const ModuleInfo& first, const std::string& first_adapter,
                            const ModuleInfo& other, const std::string& adapter) {
  if (first.kind == other.kind && first.in_features == other.in_features &&
      first.out_features == other.out_features && first.kernel == other.kernel) {
    return absl::OkStatus();
  }
  return Error(Reason::kShapeMismatch,
               fmt::format("module {} has {} in adapter \"{}\", but {} in \"{}\"", first.path,
                           ShapeOf(first), first_adapter, ShapeOf(other), adapter))
      .With("adapter", adapter)
      .With("module", first.path)
      .With("expected", ShapeOf(first))
      .With("actual", ShapeOf(other));
}

std::string Listed(const std::vector<std::string>& items) {
  std::string text;
  for (const std::string& item : items) text += (text.empty() ? "" : ", ") + item;
  return text;
}

}  // namespace

MethodTraits TraitsOf(ComposeMethod method) {
  switch (method) {
    case ComposeMethod::kLinear:
    case ComposeMethod::kCat:
      return {};
    case ComposeMethod::kSvd:
      return {.svd = true};
    case ComposeMethod::kTies:
      return {.pruning = Pruning::kMagnitude, .elects = true};
    case ComposeMethod::kTiesSvd:
      return {.pruning = Pruning::kMagnitude, .elects = true, .svd = true};
    case ComposeMethod::kDareLinear:
      return {.pruning = Pruning::kRandom};
    case ComposeMethod::kDareTies:
      return {.pruning = Pruning::kRandom, .elects = true};
    case ComposeMethod::kDareLinearSvd:
      return {.pruning = Pruning::kRandom, .svd = true};
    case ComposeMethod::kDareTiesSvd:
      return {.pruning = Pruning::kRandom, .elects = true, .svd = true};
    case ComposeMethod::kMagnitudePrune:
      return {.pruning = Pruning::kMagnitude};
    case ComposeMethod::kMagnitudePruneSvd:
      return {.pruning = Pruning::kMagnitude, .svd = true};
  }
  return {};
}

Composition::Composition(const ComposeSpec& spec, std::vector<ComposeInput> inputs,
                         const Kernels& kernels, ThreadPool& pool)
    : spec_(spec),
      traits_(TraitsOf(spec.method)),
      inputs_(std::move(inputs)),
      kernels_(kernels),
      pool_(pool) {
  // As PEFT: one adapter alone is only scaled. Its SVD is still cut to the rank that was asked for.
  if (inputs_.size() == 1) traits_ = {.svd = traits_.svd};
}

int64_t Composition::LargestRank(const ComposeInput& input) const {
  int64_t rank = 0;
  for (const ModuleInfo& module : input.manifest->modules) rank = std::max(rank, module.rank);
  return rank;
}

absl::Status Composition::CheckSpec() const {
  if (inputs_.empty()) return Invalid("adapters", "expected at least one, found none");
  if (inputs_.size() > kMaxComposeInputs) {
    return Invalid("adapters",
                   fmt::format("expected at most {}, found {}", kMaxComposeInputs, inputs_.size()));
  }
  const bool has_density = TraitsOf(spec_.method).pruning != Pruning::kNone;
  if (has_density && !(spec_.density > 0 && spec_.density <= 1)) {
    return Invalid("density",
                   fmt::format("expected above 0 and at most 1, found {}", spec_.density));
  }
  if (!traits_.svd) return absl::OkStatus();
  int64_t sum = 0;
  for (const ComposeInput& input : inputs_) sum += LargestRank(input);
  if (spec_.rank < 0 || spec_.rank > sum) {
    return Invalid("rank", fmt::format("expected 0 to {}, the sum of the adapters' ranks, found {}",
                                       sum, spec_.rank));
  }
  if (spec_.svd_clamp && !(*spec_.svd_clamp > 0 && *spec_.svd_clamp <= 1)) {
    return Invalid("svd_clamp",
                   fmt::format("expected above 0 and at most 1, found {}", *spec_.svd_clamp));
  }
  return absl::OkStatus();
}

absl::StatusOr<Composition::Parts> Composition::FindParts() const {
  Parts parts;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const ComposeInput& input = inputs_[i];
    RETURN_IF_ERROR(CheckModules(input));
    if (input.manifest->peft.layer_replication != inputs_[0].manifest->peft.layer_replication) {
      return Error(Reason::kBaseModelMismatch,
                   fmt::format("adapter \"{}\" counts the layers of the base model otherwise than "
                               "\"{}\": their layer_replication differs",
                               input.name, inputs_[0].name))
          .With("adapter", input.name);
    }
    for (size_t m = 0; m < input.manifest->modules.size(); ++m) {
      const ModuleInfo& module = input.manifest->modules[m];
      if (module.pairs() > 0) parts[module.path].push_back({&input, i, m});
    }
  }
  const bool shares = inputs_.size() == 1 || std::ranges::any_of(parts, [](const auto& entry) {
                        return entry.second.front().position != entry.second.back().position;
                      });
  if (shares) return parts;
  std::vector<std::string> names;
  for (const ComposeInput& input : inputs_) names.push_back(fmt::format("\"{}\"", input.name));
  return Invalid("adapters", fmt::format("expected adapters with modules in common, found none in "
                                         "{}",
                                         Listed(names)));
}

absl::StatusOr<int64_t> Composition::RankOf(const std::vector<Part>& parts) const {
  int64_t sum = 0;
  for (const Part& part : parts) sum += part.info().rank;
  const ModuleInfo& first = parts[0].info();
  if (traits_.svd) {
    int64_t rank = spec_.rank;
    for (const ComposeInput& input : inputs_) {
      if (spec_.rank == 0) rank = std::max(rank, LargestRank(input));
    }
    rank = std::min({rank, first.columns(), first.out_features});
    return traits_.pruning == Pruning::kNone ? std::min(rank, sum) : rank;
  }
  if (spec_.method == ComposeMethod::kCat && inputs_.size() > 1) return sum;
  for (const Part& part : parts) {
    if (part.info().rank == first.rank) continue;
    return Invalid("adapters",
                   fmt::format("the method needs equal ranks, found {} in \"{}\" and {} in \"{}\" "
                               "for module {}",
                               first.rank, parts[0].input->name, part.info().rank, part.input->name,
                               first.path));
  }
  return first.rank;
}

absl::StatusOr<ModuleInfo> Composition::PlanModule(const std::vector<Part>& parts) const {
  const ModuleInfo& first = parts[0].info();
  for (const Part& part : parts) {
    RETURN_IF_ERROR(CheckSameShape(first, parts[0].input->name, part.info(), part.input->name));
  }
  ModuleInfo module;
  module.path = first.path;
  module.kind = first.kind;
  module.in_features = first.in_features;
  module.out_features = first.out_features;
  module.kernel = first.kernel;
  module.kernel_elements = first.kernel_elements;
  ASSIGN_OR_RETURN(module.rank, RankOf(parts));
  module.alpha = static_cast<double>(module.rank);
  const auto elements = CheckedMul(module.out_features, module.columns());
  const bool forms_delta = traits_.svd && traits_.pruning != Pruning::kNone;
  if (forms_delta && (!elements || *elements > kMaxDeltaBytes / int64_t{sizeof(float)})) {
    return Invalid("method",
                   fmt::format("needs the whole delta of module {} [{}, {}], which has "
                               "more than {} bytes; SVD does not",
                               module.path, module.out_features, module.columns(), kMaxDeltaBytes));
  }
  return module;
}

absl::StatusOr<std::unique_ptr<Composition>> Composition::Plan(const ComposeSpec& spec,
                                                               std::vector<ComposeInput> inputs,
                                                               const Kernels& kernels,
                                                               ThreadPool& pool) {
  std::unique_ptr<Composition> plan(new Composition(spec, std::move(inputs), kernels, pool));
  RETURN_IF_ERROR(plan->CheckSpec());
  ASSIGN_OR_RETURN(Parts parts, plan->FindParts());
  std::vector<ModuleInfo> modules;
  for (const auto& [path, of_module] : parts) {
    ASSIGN_OR_RETURN(ModuleInfo module, plan->PlanModule(of_module));
    modules.push_back(std::move(module));
    plan->parts_.push_back(of_module);
  }
  AdapterManifest manifest = ManifestOfPairs(std::move(modules), /*use_rslora=*/false);
  const AdapterManifest& first = *plan->inputs_[0].manifest;
  for (const ComposeInput& input : plan->inputs_) {
    if (manifest.base_model.empty()) manifest.base_model = input.manifest->base_model;
  }
  manifest.lora_dropout = first.lora_dropout;
  manifest.peft.task_type = first.peft.task_type;
  manifest.peft.fan_in_fan_out = first.peft.fan_in_fan_out;
  manifest.peft.layer_replication = first.peft.layer_replication;
  plan->manifest_ = std::make_shared<const AdapterManifest>(std::move(manifest));
  plan->computed_.resize(plan->parts_.size());
  return plan;
}

}  // namespace adapterd
