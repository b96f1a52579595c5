#include "core/catalog/data_dir.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

constexpr char kLockFile[] = "lock";
constexpr size_t kMaxPidDigits = 10;  // of a 32-bit pid

Error FileError(int error, const std::string& folder, std::string_view problem) {
  const bool full = error == ENOSPC || error == EDQUOT;
  return {full ? Reason::kStorageFull : Reason::kSourceUnavailable,
          fmt::format("data directory {}: {}: {}", Quoted(folder), problem,
                      std::generic_category().message(error))};
}

// The folder that holds `path`, as mkdir sees it.
std::string ParentOf(std::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  return std::string(path.substr(0, std::max<size_t>(slash, 1)));
}

absl::Status SyncFolder(const std::string& path, const std::string& shown) {
  const ScopedFd folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.valid() && fsync(folder.get()) == 0) return absl::OkStatus();
  return FileError(errno, shown, "cannot write its parent to disk");
}

absl::Status MakeFolder(const std::string& path) {
  if (mkdir(path.c_str(), 0700) == 0) return SyncFolder(ParentOf(path), path);
  if (errno == EEXIST) return absl::OkStatus();
  if (errno == ENOENT) {
    return Error(Reason::kSourceNotFound,
                 fmt::format("data directory {}: its parent does not exist", Quoted(path)));
  }
  return FileError(errno, path, "cannot be created");
}

// What the holder of the lock wrote; empty when that is no number.
std::string ReadPid(int file) {
  std::array<char, kMaxPidDigits + 1> text;
  const ssize_t size = pread(file, text.data(), text.size(), 0);
  std::string pid(text.data(), static_cast<size_t>(std::max<ssize_t>(size, 0)));
  if (!pid.empty() && pid.back() == '\n') pid.pop_back();
  const bool digits =
      std::all_of(pid.begin(), pid.end(), [](char c) { return c >= '0' && c <= '9'; });
  return digits ? pid : "";
}

absl::Status Held(int file, const std::string& folder) {
  const std::string pid = ReadPid(file);
  const std::string holder = pid.empty() ? "another process" : "process " + pid;
  return Error(Reason::kSourceUnavailable,
               fmt::format("data directory {} is in use by {}: stop it, or give this server a "
                           "directory of its own",
                           Quoted(folder), holder));
}

absl::StatusOr<ScopedFd> TakeLock(int folder, const std::string& path) {
  ScopedFd lock(openat(folder, kLockFile, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!lock.valid()) return FileError(errno, path, "cannot open its file \"lock\"");
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return Held(lock.get(), path);
    return FileError(errno, path, "cannot be locked");
  }
  const std::string pid = fmt::format("{}\n", getpid());
  if (ftruncate(lock.get(), 0) != 0 ||
      pwrite(lock.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return FileError(errno, path, "cannot write its file \"lock\"");
  }
  return lock;
}

}  // namespace

absl::StatusOr<DataDir> DataDir::Open(const std::string& path) {
  RETURN_IF_ERROR(MakeFolder(path));
  ScopedFd folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid()) return FileError(errno, path, "cannot be opened");
  ASSIGN_OR_RETURN(ScopedFd lock, TakeLock(folder.get(), path));
  return DataDir(path, std::move(folder), std::move(lock));
}

std::string DataDir::PathOf(std::string_view name) const {
  return fmt::format("{}/{}", path_, name);
}

absl::StatusOr<int64_t> DataDir::SizeOf(std::string_view name) const {
  struct stat state;
  if (fstatat(folder_.get(), std::string(name).c_str(), &state, 0) == 0) return state.st_size;
  if (errno == ENOENT) return -1;
  return FileError(errno, path_, fmt::format("cannot look at {}", name));
}

absl::Status DataDir::Remove(std::string_view name) const {
  if (unlinkat(folder_.get(), std::string(name).c_str(), 0) == 0 || errno == ENOENT) {
    return absl::OkStatus();
  }
  return FileError(errno, path_, fmt::format("cannot remove {}", name));
}

absl::Status DataDir::Create(std::string_view name) const {
  const ScopedFd file(openat(folder_.get(), std::string(name).c_str(),
                             O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (file.valid()) return absl::OkStatus();
  return FileError(errno, path_, fmt::format("cannot create {}", name));
}

absl::Status DataDir::Publish(std::string_view name, std::string_view final_name) const {
  if (renameat(folder_.get(), std::string(name).c_str(), folder_.get(),
               std::string(final_name).c_str()) == 0 &&
      fsync(folder_.get()) == 0) {
    return absl::OkStatus();
  }
  return FileError(errno, path_, fmt::format("cannot rename {} to {}", name, final_name));
}

}  // namespace adapterd
