// What it takes to make what is loaded equal to what is desired.
#ifndef ADAPTERD_CORE_CATALOG_RECONCILE_H_
#define ADAPTERD_CORE_CATALOG_RECONCILE_H_

#include <optional>
#include <string>
#include <vector>

#include "core/registry/registry_types.h"

namespace adapterd {

enum class ReconcileAction {
  kLoad,       // it is not there
  kReplace,    // it is there with another spec, or cannot serve
  kUnload,     // it is not desired
  kUnchanged,  // it is as desired
  kConflict,   // something else decides about it: nothing is done
};

struct ReconcileStep {
  std::string name;
  ReconcileAction action = ReconcileAction::kUnchanged;
  std::string reason;                   // a few words for people
  std::optional<LoadRequest> load;      // of kLoad and kReplace
  std::optional<UnloadRequest> unload;  // of kUnload
};

// One step for each desired adapter, and with `prune` one for each other that clients have loaded,
// by name. An adapter is as desired when it can serve and its source, options and labels are those
// of its spec, and a digest that the spec expects is its own; whether files changed since it was
// read is not looked at. What a folder brought is a conflict when it is desired, and left alone
// otherwise; pinned adapters are not pruned. Pure. REQUIRES: no name twice in `desired`.
std::vector<ReconcileStep> PlanReconcile(const std::vector<LoadRequest>& desired,
                                         const std::vector<AdapterSnapshot>& current, bool prune);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_RECONCILE_H_
