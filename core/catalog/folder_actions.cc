#include "core/catalog/folder_actions.h"

#include <utility>

#include "core/registry/adapter_registry.h"

namespace adapterd {

FolderActions ActionsOf(AdapterRegistry& registry) {
  FolderActions actions;
  actions.load = [&registry](LoadRequest request, FolderActions::Done done) {
    const auto ticket =
        registry.Load(std::move(request),
                      [done = std::move(done)](const absl::StatusOr<LoadResult>& result) mutable {
                        done(result.status());
                      });
    return [&registry, ticket] { registry.Cancel(ticket); };
  };
  actions.unload = [&registry](UnloadRequest request, FolderActions::Done done) {
    registry.Unload(std::move(request),
                    [done = std::move(done)](const absl::StatusOr<UnloadResult>& result) mutable {
                      done(result.status());
                    });
  };
  actions.get = [&registry](const std::string& name) { return registry.Get(name); };
  return actions;
}

}  // namespace adapterd
