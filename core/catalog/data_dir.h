// The folder that holds all state of one server.
#ifndef ADAPTERD_CORE_CATALOG_DATA_DIR_H_
#define ADAPTERD_CORE_CATALOG_DATA_DIR_H_

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/formats/scoped_fd.h"

namespace adapterd {

// Holds the folder for this process: two servers that write to one folder would each undo what the
// other acknowledged. The lock is the kernel's (flock on the file "lock"), so it ends with the
// process however that dies; the file stays. A child that is forked and does not exec shares it.
// Immutable after opening; any thread.
class DataDir {
 public:
  // Makes the folder, for the owner alone, when only its last component is missing.
  // SOURCE_NOT_FOUND: its parent does not exist. SOURCE_UNAVAILABLE: another process holds it (the
  // message says which one), it is no folder, or it cannot be written.
  static absl::StatusOr<DataDir> Open(const std::string& path);

  const std::string& path() const { return path_; }
  std::string PathOf(std::string_view name) const;  // of an entry

  // Size of an entry in bytes, -1 when there is none. SOURCE_UNAVAILABLE.
  absl::StatusOr<int64_t> SizeOf(std::string_view name) const;

  // OK also when there is none. SOURCE_UNAVAILABLE.
  absl::Status Remove(std::string_view name) const;

  // An empty file that only the owner may read. STORAGE_FULL, SOURCE_UNAVAILABLE.
  absl::Status Create(std::string_view name) const;

  // Gives a file its final name; on return that is on disk. STORAGE_FULL, SOURCE_UNAVAILABLE.
  absl::Status Publish(std::string_view name, std::string_view final_name) const;

 private:
  DataDir(std::string path, ScopedFd folder, ScopedFd lock)
      : path_(std::move(path)), folder_(std::move(folder)), lock_(std::move(lock)) {}

  std::string path_;
  ScopedFd folder_;
  ScopedFd lock_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_DATA_DIR_H_
