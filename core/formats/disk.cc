#include "core/formats/disk.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/base/error.h"

namespace adapterd {
namespace {

constexpr mode_t kOwnerFolder = 0700;
constexpr mode_t kOwnerFile = 0600;
constexpr mode_t kUmaskFolder = 0777;
constexpr mode_t kUmaskFile = 0666;

// Runs a call again that a signal interrupted.
template <typename Call>
auto Retry(Call call) {
  for (;;) {
    const auto result = call();
    if (result >= 0) return result;
    if (errno != EINTR) return static_cast<decltype(result)>(-errno);
  }
}

}  // namespace

int Disk::MakeFolder(int parent, const std::string& name) {
  const mode_t mode = access_ == Access::kOwner ? kOwnerFolder : kUmaskFolder;
  return Retry([&] { return mkdirat(parent, name.c_str(), mode); });
}

int Disk::OpenFolder(int parent, const std::string& name) {
  return Retry([&] {
    return openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  });
}

int Disk::CreateFile(int folder, const std::string& name) {
  const mode_t mode = access_ == Access::kOwner ? kOwnerFile : kUmaskFile;
  return Retry([&] {
    return openat(folder, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
  });
}

int64_t Disk::Write(int file, std::string_view bytes) {
  return Retry([&] { return static_cast<int64_t>(write(file, bytes.data(), bytes.size())); });
}

int64_t Disk::WriteAt(int file, int64_t offset, std::span<const std::byte> bytes) {
  return Retry(
      [&] { return static_cast<int64_t>(pwrite(file, bytes.data(), bytes.size(), offset)); });
}

int Disk::Allocate(int file, int64_t bytes) {
  if (bytes == 0) return 0;
  const int error = Retry([&] { return fallocate(file, 0, 0, bytes); });
  return error == -EOPNOTSUPP || error == -ENOSYS ? 0 : error;
}

int64_t Disk::CopyRange(int from, int64_t from_offset, int to, int64_t to_offset, int64_t bytes) {
  return Retry([&] {
    off64_t in = from_offset;
    off64_t out = to_offset;
    return static_cast<int64_t>(
        copy_file_range(from, &in, to, &out, static_cast<size_t>(bytes), 0));
  });
}

void Disk::BeginSync(int file, int64_t offset, int64_t bytes) {
  sync_file_range(file, offset, bytes, SYNC_FILE_RANGE_WRITE);  // an error is Sync's to tell
}

int Disk::Sync(int file_or_folder) {
  return Retry([&] { return fsync(file_or_folder); });
}

int Disk::Rename(int from_folder, const std::string& from, int to_folder, const std::string& to) {
  return Retry([&] { return renameat(from_folder, from.c_str(), to_folder, to.c_str()); });
}

int Disk::RenameNew(int from_folder, const std::string& from, int to_folder,
                    const std::string& to) {
  return Retry([&] {
    return renameat2(from_folder, from.c_str(), to_folder, to.c_str(), RENAME_NOREPLACE);
  });
}

absl::Status DiskError(int error, std::string_view what) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return Error(full ? Reason::kStorageFull : Reason::kSourceUnavailable,
               fmt::format("{}: {}", what, std::strerror(error)));
}

}  // namespace adapterd
