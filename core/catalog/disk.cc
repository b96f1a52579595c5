#include "core/catalog/disk.h"

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

constexpr mode_t kFolderMode = 0700;
constexpr mode_t kFileMode = 0600;

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
  return Retry([&] { return mkdirat(parent, name.c_str(), kFolderMode); });
}

int Disk::OpenFolder(int parent, const std::string& name) {
  return Retry([&] {
    return openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  });
}

int Disk::CreateFile(int folder, const std::string& name) {
  return Retry([&] {
    return openat(folder, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                  kFileMode);
  });
}

int64_t Disk::Write(int file, std::string_view bytes) {
  return Retry([&] { return static_cast<int64_t>(write(file, bytes.data(), bytes.size())); });
}

int Disk::Sync(int file_or_folder) {
  return Retry([&] { return fsync(file_or_folder); });
}

int Disk::Rename(int from_folder, const std::string& from, int to_folder, const std::string& to) {
  return Retry([&] { return renameat(from_folder, from.c_str(), to_folder, to.c_str()); });
}

absl::Status DiskError(int error, std::string_view what) {
  const bool full = error == ENOSPC || error == EDQUOT;
  return Error(full ? Reason::kStorageFull : Reason::kSourceUnavailable,
               fmt::format("{}: {}", what, std::strerror(error)));
}

}  // namespace adapterd
