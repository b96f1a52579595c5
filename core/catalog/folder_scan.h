// What a folder of adapters holds at one instant.
#ifndef ADAPTERD_CORE_CATALOG_FOLDER_SCAN_H_
#define ADAPTERD_CORE_CATALOG_FOLDER_SCAN_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/formats/input_file.h"
#include "core/formats/source_roots.h"

namespace adapterd {

// Each folder right below the scanned one whose name is a legal name (IsName) is one adapter; a
// symlink counts as what it leads to. Everything else is left alone: files, hidden entries (the
// versions of a mounted ConfigMap, ".." and all) and symlinks that lead to nothing.
struct FolderScan {
  // A digest over names, sizes, times and inodes of all that lies in the adapter's folder and in
  // the folders right below it (where PEFT puts an adapter with a name), symlinks followed. What
  // cannot be looked at counts with the error instead. Equal at two instants: nothing was changed.
  using Fingerprint = std::string;

  FileIdentity identity;  // of the scanned folder; its size and times mean nothing here
  std::shared_ptr<const SourceRoots> roots;     // the scanned folder itself, as the unnamed root
  std::map<std::string, Fingerprint> adapters;  // by name
  std::vector<std::string> misnamed;   // folders whose names are no names of adapters, sorted
  std::vector<std::string> watchable;  // the scanned folder and all that count, as paths
};

// A few microseconds for each file, nothing is opened for reading. SOURCE_NOT_FOUND and
// SOURCE_UNAVAILABLE when the folder itself cannot be listed. `path` may be a symlink. Any thread.
absl::StatusOr<FolderScan> ScanFolder(const std::string& path);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_FOLDER_SCAN_H_
