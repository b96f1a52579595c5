#include "core/catalog/folder_scan.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <optional>
#include <string_view>
#include <utility>

#include "core/base/error.h"
#include "core/base/name.h"
#include "core/base/quote.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/formats/beneath.h"
#include "core/formats/scoped_fd.h"

namespace adapterd {
namespace {

// What mkfs puts on every volume of ext4: nobody's mistake, so nobody is told.
constexpr std::string_view kVolumeFolder = "lost+found";

struct Found {
  ScopedFd pinned;
  FileIdentity identity;
  bool is_folder = false;
};

absl::StatusOr<Found> Look(int root, const std::string& path) {
  ASSIGN_OR_RETURN(ScopedFd pinned, OpenBeneath(root, path));
  struct stat state;
  if (fstat(pinned.get(), &state) != 0) return PathError(errno, path);
  return Found{std::move(pinned), IdentityOf(state), S_ISDIR(state.st_mode)};
}

// Whether `name`, which cannot be opened below `root`, is an adapter's folder all the same: out of
// reach or outside, but there. A symlink whose target is gone is not.
bool IsFolderOutOfReach(int root, const std::string& name) {
  struct stat state;
  if (fstatat(root, name.c_str(), &state, 0) == 0) return S_ISDIR(state.st_mode);
  return errno != ENOENT && errno != ELOOP;
}

class FingerprintMaker {
 public:
  // `root` is the scanned folder's descriptor. Adds the folders that it visits to `watchable`,
  // as paths below `path`.
  FingerprintMaker(int root, const std::string& path, std::vector<std::string>& watchable)
      : root_(root), path_(path), watchable_(watchable) {}

  void AddError(std::string_view name, const absl::Status& status) {
    const std::string message(status.message());
    Line(fmt::format("{}:{} {}", name.size(), name, message));
  }

  // `levels`: how many levels of folders below this one count, too.
  void AddFolder(const std::string& name, const Found& folder, int levels) {
    watchable_.push_back(fmt::format("{}/{}", path_, name));
    const auto entries = ListFolder(folder.pinned, name);
    if (!entries.ok()) return AddError(name, entries.status());
    entries_ += static_cast<int>(entries->size());
    // The reader does not list larger ones either.
    if (entries_ > kMaxFolderEntries) return Line("too many entries");
    for (const std::string& entry : *entries) AddEntry(fmt::format("{}/{}", name, entry), levels);
  }

  FolderScan::Fingerprint Finish() { return sha_.FinishHex(); }

 private:
  void AddEntry(const std::string& name, int levels) {
    const auto found = Look(root_, name);
    if (!found.ok()) return AddError(name, found.status());
    const FileIdentity& id = found->identity;
    Line(fmt::format("{}:{} {} {}", name.size(), name, id.device, id.inode));
    // A folder changes size and times with its entries, which count themselves or not at all.
    if (!found->is_folder) {
      Line(fmt::format("{} {} {}", id.size, id.modified_ns, id.changed_ns));
    } else if (levels > 0) {
      AddFolder(name, *found, levels - 1);
    }
  }

  void Line(std::string_view text) {
    sha_.Update(text);
    sha_.Update("\n");
  }

  const int root_;
  const std::string& path_;
  std::vector<std::string>& watchable_;
  Sha256 sha_;
  int entries_ = 0;
};

void ScanEntry(int root, const std::string& path, const std::string& name, FolderScan& scan) {
  if (name.starts_with('.') || name == kVolumeFolder) return;
  FingerprintMaker maker(root, path, scan.watchable);
  const auto found = Look(root, name);
  if (found.ok()) {
    if (!found->is_folder) return;
    if (!IsName(name)) {
      scan.misnamed.push_back(name);
      return;
    }
    maker.AddFolder(name, *found, 1);
  } else {
    if (!IsName(name) || !IsFolderOutOfReach(root, name)) return;
    maker.AddError(name, found.status());
  }
  scan.adapters.emplace(name, maker.Finish());
}

}  // namespace

absl::StatusOr<FolderScan> ScanFolder(const std::string& path) {
  const ScopedFd folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid()) return PathError(errno, path);
  struct stat state;
  if (fstat(folder.get(), &state) != 0) return PathError(errno, path);
  FolderScan scan;
  scan.identity = IdentityOf(state);
  // The same folder, even when `path` leads to another one by now.
  ASSIGN_OR_RETURN(SourceRoots roots,
                   SourceRoots::Open({{"", fmt::format("/proc/self/fd/{}", folder.get())}}));
  scan.roots = std::make_shared<const SourceRoots>(std::move(roots));
  ASSIGN_OR_RETURN(const std::vector<std::string> entries, ListFolder(folder, path));
  scan.watchable.push_back(path);
  for (const std::string& name : entries) ScanEntry(folder.get(), path, name, scan);
  return scan;
}

}  // namespace adapterd
