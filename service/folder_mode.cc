#include "service/folder_mode.h"

#include <fmt/format.h>

#include <utility>

#include "core/base/error.h"

namespace adapterd {

absl::StatusOr<std::shared_ptr<RenewableRoots>> OpenWatchedFolder(const std::string& path) {
  if (path.empty()) return nullptr;
  absl::StatusOr<SourceRoots> roots = SourceRoots::Open({{"", path}});
  if (!roots.ok()) {
    return Error(GetErrorDetails(roots.status()).reason,
                 fmt::format("--watch-adapters: {}", std::string(roots.status().message())));
  }
  return std::make_shared<RenewableRoots>(std::make_shared<const SourceRoots>(*std::move(roots)));
}

void LogFolderEvent(Logger& logger, const FolderEvent& event) {
  const std::string reason =
      event.status.ok() ? "" : std::string(ReasonName(GetErrorDetails(event.status).reason));
  const std::string message(event.status.message());
  switch (event.kind) {
    case FolderEvent::Kind::kUnloaded:
      return logger.Log(LogLevel::kInfo, "adapter_unloaded",
                        {{"adapter", event.name}, {"why", "its folder is gone"}});
    case FolderEvent::Kind::kFailed:
      return logger.Log(LogLevel::kWarning, "adapter_failed",
                        {{"adapter", event.name}, {"reason", reason}, {"message", message}});
    case FolderEvent::Kind::kSkipped:
      return logger.Log(LogLevel::kWarning, "adapter_skipped",
                        {{"adapter", event.name}, {"why", "clients loaded one of this name"}});
    case FolderEvent::Kind::kMisnamed:
      return logger.Log(LogLevel::kWarning, "adapter_misnamed", {{"folder", event.name}});
    case FolderEvent::Kind::kUnreadable:
      return logger.Log(LogLevel::kError, "folder_unreadable",
                        {{"reason", reason}, {"message", message}});
    case FolderEvent::Kind::kReadable:
      return logger.Log(LogLevel::kInfo, "folder_readable");
    case FolderEvent::Kind::kUnheard:
      return logger.Log(LogLevel::kWarning, "folder_unheard", {{"message", message}});
  }
}

absl::StatusOr<std::unique_ptr<FolderWatch>> StartFolderMode(const std::string& path,
                                                             std::shared_ptr<RenewableRoots> roots,
                                                             AdapterRegistry& registry,
                                                             Logger& logger) {
  FolderOptions options;
  options.path = path;
  options.report = [&logger](const FolderEvent& event) { LogFolderEvent(logger, event); };
  return FolderWatch::Start(std::move(options), ActionsOf(registry), std::move(roots));
}

}  // namespace adapterd
