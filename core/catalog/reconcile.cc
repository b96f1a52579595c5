#include "core/catalog/reconcile.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "core/base/error.h"

namespace adapterd {
namespace {

bool HasDigest(const AdapterSnapshot& adapter, const std::string& expected) {
  return expected.empty() || expected == adapter.digest.revision ||
         expected == adapter.digest.weights_sha256;
}

// Names of what differs, as in the spec.
std::vector<std::string_view> Differences(const LoadRequest& desired,
                                          const AdapterSnapshot& found) {
  std::vector<std::string_view> names;
  const auto compare = [&](bool equal, std::string_view name) {
    if (!equal) names.push_back(name);
  };
  const SourceSpec& source = found.source_spec;
  compare(desired.source.source == source.source && desired.source.stored == source.stored,
          "source");
  compare(desired.source.base_model == source.base_model, "base_model");
  compare(desired.source.base_checkpoint == source.base_checkpoint, "base_checkpoint");
  compare(desired.source.hosted_base == source.hosted_base, "hosted_base");
  compare(desired.source.head_counts == source.head_counts, "head_counts");
  compare(HasDigest(found, desired.expected_digest), "expected_digest");
  compare(desired.pinned == found.pinned, "pinned");
  compare(desired.labels == found.labels, "labels");
  return names;
}

ReconcileStep Load(const LoadRequest& desired, ReconcileAction action, std::string reason,
                   bool replace) {
  LoadRequest load = desired;
  load.replace = replace;
  return {desired.name, action, std::move(reason), std::move(load), std::nullopt};
}

ReconcileStep NoStep(const std::string& name, ReconcileAction action, std::string reason) {
  return {name, action, std::move(reason), std::nullopt, std::nullopt};
}

ReconcileStep StepFor(const LoadRequest& desired, const AdapterSnapshot& found) {
  if (found.owner == AdapterOwner::kFolder) {
    return NoStep(desired.name, ReconcileAction::kConflict, "a watched folder has brought it");
  }
  if (found.state == AdapterState::kLoading) {
    return Load(desired, ReconcileAction::kLoad, "is being loaded", /*replace=*/true);
  }
  if (found.state == AdapterState::kFailed) {
    return Load(desired, ReconcileAction::kReplace,
                fmt::format("failed with {}", ReasonName(GetErrorDetails(found.error).reason)),
                /*replace=*/true);
  }
  const std::vector<std::string_view> differences = Differences(desired, found);
  if (differences.empty()) {
    return NoStep(desired.name, ReconcileAction::kUnchanged, "as desired");
  }
  return Load(desired, ReconcileAction::kReplace,
              fmt::format("another {}", fmt::join(differences, ", ")), /*replace=*/true);
}

ReconcileStep PruneStep(const AdapterSnapshot& found) {
  if (found.pinned) {
    return NoStep(found.name, ReconcileAction::kConflict, "not desired, but pinned");
  }
  // Whatever takes its place meanwhile was not meant.
  UnloadRequest unload{found.name, found.digest.revision};
  return {found.name, ReconcileAction::kUnload, "not desired", std::nullopt, std::move(unload)};
}

}  // namespace

std::vector<ReconcileStep> PlanReconcile(const std::vector<LoadRequest>& desired,
                                         const std::vector<AdapterSnapshot>& current, bool prune) {
  std::map<std::string_view, const AdapterSnapshot*> others;
  for (const AdapterSnapshot& adapter : current) others[adapter.name] = &adapter;
  std::vector<ReconcileStep> steps;
  for (const LoadRequest& wanted : desired) {
    const auto found = others.find(wanted.name);
    if (found == others.end()) {
      steps.push_back(Load(wanted, ReconcileAction::kLoad, "not loaded", /*replace=*/false));
      continue;
    }
    steps.push_back(StepFor(wanted, *found->second));
    others.erase(found);
  }
  for (const auto& [name, adapter] : others) {
    if (prune && adapter->owner == AdapterOwner::kClients) steps.push_back(PruneStep(*adapter));
  }
  std::sort(steps.begin(), steps.end(),
            [](const ReconcileStep& a, const ReconcileStep& b) { return a.name < b.name; });
  return steps;
}

}  // namespace adapterd
