// What the content store does to the disk, call by call.
#ifndef ADAPTERD_CORE_CATALOG_DISK_H_
#define ADAPTERD_CORE_CATALOG_DISK_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace adapterd {

// The system's calls as they are, on names below an open folder; virtual so that tests can let each
// of them fail. Stateless; any thread. A negative result is a negated errno.
class Disk {
 public:
  virtual ~Disk() = default;

  // For the owner alone. 0.
  virtual int MakeFolder(int parent, const std::string& name);
  // A descriptor of the folder.
  virtual int OpenFolder(int parent, const std::string& name);
  // For the owner alone, and new: a descriptor to write to.
  virtual int CreateFile(int folder, const std::string& name);
  // How many of the bytes were written, which may be fewer than all.
  virtual int64_t Write(int file, std::string_view bytes);
  // 0 once a file's bytes, or a folder's entries, survive a loss of power.
  virtual int Sync(int file_or_folder);
  // 0. Moves a folder; fails when `to` is a folder with entries.
  virtual int Rename(int from_folder, const std::string& from, int to_folder,
                     const std::string& to);
};

// The error that `error` (an errno) means: STORAGE_FULL for a full disk or quota, else
// SOURCE_UNAVAILABLE. `what` says what could not be done.
absl::Status DiskError(int error, std::string_view what);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_DISK_H_
