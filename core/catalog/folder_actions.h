// What a watched folder needs of the registry, so that tests can stand in for it.
#ifndef ADAPTERD_CORE_CATALOG_FOLDER_ACTIONS_H_
#define ADAPTERD_CORE_CATALOG_FOLDER_ACTIONS_H_

#include <functional>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/registry/registry_types.h"

namespace adapterd {

class AdapterRegistry;

// `load` gives what cancels it; callbacks run exactly once, on any thread, also before the call
// that they belong to returns.
struct FolderActions {
  using Cancel = std::function<void()>;
  using Done = absl::AnyInvocable<void(absl::Status)>;
  std::function<Cancel(LoadRequest, Done)> load;
  std::function<void(UnloadRequest, Done)> unload;
  std::function<absl::StatusOr<AdapterSnapshot>(const std::string& name)> get;
};

// `registry` must outlive the copies.
FolderActions ActionsOf(AdapterRegistry& registry);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_FOLDER_ACTIONS_H_
