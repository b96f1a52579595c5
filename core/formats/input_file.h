// A regular file opened for reading, with proof that it did not change meanwhile.
#ifndef ADAPTERD_CORE_FORMATS_INPUT_FILE_H_
#define ADAPTERD_CORE_FORMATS_INPUT_FILE_H_

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace adapterd {

// What tells one state of a file from another without reading it.
struct FileIdentity {
  uint64_t device = 0;
  uint64_t inode = 0;
  int64_t size = 0;
  int64_t modified_ns = 0;  // mtime
  int64_t changed_ns = 0;   // ctime: moves with every write, cannot be set back by a program

  bool operator==(const FileIdentity&) const = default;
};

FileIdentity IdentityOf(const struct stat& state);

// Owns the descriptor. ReadAt may be called from several threads at once. Files are copied on load,
// never mapped: a mapped file that another process truncates is a SIGBUS.
class InputFile {
 public:
  // Takes over `fd`. `name` is what errors call the file: relative to its root, never absolute.
  // SOURCE_NOT_FOUND when it is not a regular file.
  static absl::StatusOr<InputFile> FromDescriptor(int fd, std::string name);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;

  const std::string& name() const { return name_; }
  int descriptor() const { return fd_; }  // for the system to copy from; stays this object's
  int64_t size() const { return identity_.size; }
  const FileIdentity& identity() const { return identity_; }  // as it was when opened

  // Fills `out` from `offset`. SOURCE_CHANGED when the file ends before that, SOURCE_UNAVAILABLE
  // when the disk fails.
  absl::Status ReadAt(int64_t offset, std::span<std::byte> out) const;

  // SOURCE_CHANGED when size, times or inode are no longer those of the opening.
  absl::Status CheckUnchanged() const;

 private:
  InputFile(int fd, std::string name, FileIdentity identity);

  int fd_;
  std::string name_;
  FileIdentity identity_;
};

// All of a small file. MALFORMED_CONFIG when it is larger than `max_bytes`.
absl::StatusOr<std::string> ReadSmallFile(const InputFile& file, int64_t max_bytes);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_INPUT_FILE_H_
