// --watch-adapters: a watched folder, the registry and the log put together.
#ifndef ADAPTERD_SERVICE_FOLDER_MODE_H_
#define ADAPTERD_SERVICE_FOLDER_MODE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/catalog/folder_watch.h"
#include "core/formats/renewable_roots.h"
#include "core/registry/adapter_registry.h"
#include "service/logger.h"

namespace adapterd {

// The folder at `path` as it is now; null when `path` is empty. SOURCE_NOT_FOUND, which names the
// flag.
absl::StatusOr<std::shared_ptr<RenewableRoots>> OpenWatchedFolder(const std::string& path);

// One line for each change; loads that went well have the registry's. Any thread.
void LogFolderEvent(Logger& logger, const FolderEvent& event);

// `registry` opens watched sources below `roots`; both it and `logger` outlive the result. Errors:
// those of FolderWatch::Start.
absl::StatusOr<std::unique_ptr<FolderWatch>> StartFolderMode(const std::string& path,
                                                             std::shared_ptr<RenewableRoots> roots,
                                                             AdapterRegistry& registry,
                                                             Logger& logger);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_FOLDER_MODE_H_
