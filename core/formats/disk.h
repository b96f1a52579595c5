// What writing to the disk takes, call by call.
#ifndef ADAPTERD_CORE_FORMATS_DISK_H_
#define ADAPTERD_CORE_FORMATS_DISK_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace adapterd {

// The system's calls as they are, on names below an open folder; virtual so that tests can let each
// of them fail. Stateless; any thread. A negative result is a negated errno.
class Disk {
 public:
  // Who may use what is made: the owner alone, or whom the process' umask lets.
  enum class Access { kOwner, kUmask };
  explicit Disk(Access access = Access::kOwner) : access_(access) {}
  virtual ~Disk() = default;

  // 0.
  virtual int MakeFolder(int parent, const std::string& name);
  // A descriptor of the folder.
  virtual int OpenFolder(int parent, const std::string& name);
  // New: a descriptor to write to.
  virtual int CreateFile(int folder, const std::string& name);
  // How many of the bytes were written, which may be fewer than all.
  virtual int64_t Write(int file, std::string_view bytes);
  virtual int64_t WriteAt(int file, int64_t offset, std::span<const std::byte> bytes);
  // Takes the room for a file of so many bytes. 0 also where the file system cannot do that.
  virtual int Allocate(int file, int64_t bytes);
  // How many bytes went from one file to the other inside the system, which may be fewer than all
  // and share them on the disk. -EXDEV and -EINVAL, among others, where it cannot do that.
  virtual int64_t CopyRange(int from, int64_t from_offset, int to, int64_t to_offset,
                            int64_t bytes);
  // A hint that these bytes were written for good: the disk may begin with them, so that a later
  // Sync finds less to do.
  virtual void BeginSync(int file, int64_t offset, int64_t bytes);
  // 0 once a file's bytes, or a folder's entries, survive a loss of power.
  virtual int Sync(int file_or_folder);
  // 0. Moves a folder; fails when `to` is a folder with entries.
  virtual int Rename(int from_folder, const std::string& from, int to_folder,
                     const std::string& to);
  // The same, but fails with -EEXIST when there is anything called `to`.
  virtual int RenameNew(int from_folder, const std::string& from, int to_folder,
                        const std::string& to);

 private:
  const Access access_;
};

// The error that `error` (an errno) means: STORAGE_FULL for a full disk, quota or limit, else
// SOURCE_UNAVAILABLE. `what` says what could not be done.
absl::Status DiskError(int error, std::string_view what);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_DISK_H_
