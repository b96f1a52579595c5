// The folders that sources may come from, and the only way to open something below them.
#ifndef ADAPTERD_CORE_FORMATS_SOURCE_ROOTS_H_
#define ADAPTERD_CORE_FORMATS_SOURCE_ROOTS_H_

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/formats/beneath.h"
#include "core/formats/input_file.h"

namespace adapterd {

// A folder below a root. Its files are opened through the root, so that a symlink inside may lead
// elsewhere below the same root (the hub's cache does that) but never out of it.
// Immutable; any thread.
class SourceFolder {
 public:
  const std::string& path() const { return path_; }  // as asked for, relative to the root

  // Names of all entries but "." and "..", sorted. At most kMaxFolderEntries, else
  // SOURCE_NOT_FOUND.
  const std::vector<std::string>& entries() const { return entries_; }
  bool Has(std::string_view name) const;

  // `name` is an entry, or a path below this folder. SOURCE_NOT_FOUND when absent, not permitted or
  // not a regular file (FIFOs and devices are not opened), PATH_OUTSIDE_ROOT when it is absolute,
  // has a ".." component or is a symlink that leaves the root.
  absl::StatusOr<InputFile> OpenFile(std::string_view name) const;

 private:
  friend class SourceRoots;
  SourceFolder(std::shared_ptr<const int> root_fd, std::string path,
               std::vector<std::string> entries);

  std::shared_ptr<const int> root_fd_;  // closed with the last user
  std::string path_;
  std::vector<std::string> entries_;
};

inline constexpr int kMaxSourceBytes = 4096;  // PATH_MAX

// A set of roots, each with a name; one may be unnamed. Immutable after construction; any thread.
class SourceRoots {
 public:
  struct Root {
    std::string name;  // empty for the unnamed one
    std::string path;
  };

  // INVALID_FIELD when two roots share a name or a name is not [A-Za-z0-9_][A-Za-z0-9_.-]{0,127};
  // SOURCE_NOT_FOUND when a root is not a readable directory.
  static absl::StatusOr<SourceRoots> Open(const std::vector<Root>& roots);

  // `source` is a path below the unnamed root, or NAME:path. Resolved with
  // openat2(RESOLVE_BENEATH), or by a checked walk over the components where the kernel forbids
  // that. INVALID_FIELD: empty, too long, holds NUL, unknown root name, or no unnamed root.
  // PATH_OUTSIDE_ROOT: absolute, has a ".." component, or follows a symlink out of the root.
  // SOURCE_NOT_FOUND: nothing there, not permitted, or neither directory nor regular file.
  // SOURCE_UNAVAILABLE: the disk fails.
  // A source that names a regular file gives the folder that holds it, with that file as its only
  // entry. A NAME: before a path below the unnamed root is only taken for a root's name when there
  // is such a root; "./NAME:path" is a path always.
  absl::StatusOr<SourceFolder> OpenFolder(std::string_view source) const;

  // True when `source` names a regular file, false for a directory; same errors as OpenFolder.
  absl::StatusOr<bool> IsFile(std::string_view source) const;

  std::vector<std::string> names() const;

  // What `source` means, not looked up yet.
  struct Located {
    std::shared_ptr<const int> root;  // an open folder
    std::string path;                 // normalized
  };
  // INVALID_FIELD and PATH_OUTSIDE_ROOT as OpenFolder.
  absl::StatusOr<Located> Locate(std::string_view source) const;
  // The roots themselves, as open folders.
  std::vector<std::shared_ptr<const int>> folders() const;

 private:
  struct OpenRoot {
    std::string name;
    std::shared_ptr<const int> fd;
  };
  explicit SourceRoots(std::vector<OpenRoot> roots) : roots_(std::move(roots)) {}

  const OpenRoot* Find(std::string_view name) const;

  std::vector<OpenRoot> roots_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_SOURCE_ROOTS_H_
