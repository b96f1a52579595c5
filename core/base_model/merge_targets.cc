#include "core/base_model/merge_targets.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/adapter/base_model_binding.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/base_model/hosted_tensors.h"

namespace adapterd {
namespace {

bool IsAboutShape(const Problem& problem) {
  return problem.severity == Severity::kError && problem.reason == Reason::kBaseModelMismatch &&
         !problem.tensor.empty();
}

// The first error. One about a tensor's shape is the request's fault here, which names the two.
absl::Status FirstError(const ProblemList& problems) {
  ProblemList one;
  for (Problem problem : problems.items()) {
    if (problem.severity != Severity::kError) continue;
    if (IsAboutShape(problem)) problem.reason = Reason::kShapeMismatch;
    one.Add(std::move(problem));
    break;
  }
  return one.ToStatus();
}

}  // namespace

absl::StatusOr<AdapterTargets> FindTargets(const std::string& name, const AdapterManifest& manifest,
                                           const std::shared_ptr<const HostedBase>& base) {
  // Its layers share weights of the base, of which it means one copy.
  if (!manifest.peft.layer_replication.empty()) {
    return Error(Reason::kUnsupportedAdapter,
                 fmt::format("adapter \"{}\" counts the layers of a stack that it replicates "
                             "(layer_replication), which a base model in memory does not have",
                             name))
        .With("adapter", name);
  }
  const HostedTensors tensors(name, base);
  ProblemList problems;
  const BindOptions options{.fan_in_fan_out = manifest.peft.fan_in_fan_out,
                            .layer_replication = {}};
  const std::vector<ModuleInfo>& modules = manifest.modules;
  const std::vector<BaseBinding> bindings = BindToBase(modules, tensors, options, problems);
  AdapterTargets targets;
  // An adapter of which nothing is found is told module by module.
  const bool any = std::ranges::any_of(problems.items(), IsAboutShape) ||
                   std::ranges::any_of(bindings, [](const BaseBinding& binding) {
                     return binding.weight || binding.bias || binding.ambiguous;
                   });
  if (any) RETURN_IF_ERROR(Annotate(FirstError(problems), "adapter", name));
  for (size_t i = 0; i < modules.size(); ++i) {
    const BaseBinding& binding = bindings[i];
    const auto invalid = [&](Reason reason, std::string_view what) {
      return Error(reason, fmt::format("adapter \"{}\", module {}: {}", name,
                                       Quoted(modules[i].path), what))
          .With("adapter", name)
          .With("module", Printable(modules[i].path));
    };
    if (binding.ambiguous) {
      return invalid(Reason::kInvalidField, "more than one module of the base model may be meant");
    }
    if (!binding.weight && !binding.bias) {
      targets.missing.push_back(modules[i].path);
      continue;
    }
    const BaseWeight& found = binding.weight ? *binding.weight : *binding.bias;
    const size_t module = tensors.ModuleOf(found.tensor);
    // What replaces the weight that a pair is added to stands behind the pair.
    if (i > 0 && modules[i].path == modules[i - 1].path) continue;
    if (targets.found.emplace(module, AdapterTarget{i, found.layout}).second) continue;
    return invalid(Reason::kUnsupportedAdapter,
                   fmt::format("{} of the base model is another of its modules, too: one weight "
                               "cannot be merged for both",
                               Quoted(base->modules()[module].path)));
  }
  return targets;
}

}  // namespace adapterd
