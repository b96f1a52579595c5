#include "core/formats/beneath.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

constexpr int kMaxSymlinks = 40;    // what the kernel allows in one path
constexpr int kMaxWalkDepth = 128;  // each level holds a descriptor while the walk lasts
constexpr int kMaxRaces = 32;       // openat2 asks to be called again after a rename in its way

// All of these return a descriptor or a negated errno; -EXDEV says that the path leaves the folder.

int OpenWithKernel(int folder, const std::string& path) {
  open_how how = {};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  for (int attempt = 0;; ++attempt) {
    const auto fd = static_cast<int>(syscall(SYS_openat2, folder, path.c_str(), &how, sizeof(how)));
    if (fd >= 0) return fd;
    if (errno != EINTR && (errno != EAGAIN || attempt >= kMaxRaces)) return -errno;
  }
}

// Puts the components of `path` on `todo`, first one last. A trailing slash becomes ".", which only
// a folder has.
void PushComponents(std::string_view path, std::vector<std::string>& todo) {
  std::vector<std::string> components;
  size_t begin = 0;
  while (begin <= path.size()) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view component = path.substr(begin, end - begin);
    components.emplace_back(component.empty() ? "." : component);
    begin = end + 1;
  }
  todo.insert(todo.end(), components.rbegin(), components.rend());
}

int ReadLink(int link, std::string& target) {
  std::array<char, PATH_MAX> buffer;
  const ssize_t size = readlinkat(link, "", buffer.data(), buffer.size());
  if (size < 0) return -errno;
  target.assign(buffer.data(), size);
  return 0;
}

// A checked walk. The folders passed so far stay open, and ".." goes back to the one that was
// passed, not to what is the parent on disk by now: moving folders about during the walk gains
// nothing.
class Walk {
 public:
  Walk(int folder, const std::string& path) : folder_(folder) { PushComponents(path, todo_); }

  int Run() {
    while (!todo_.empty()) {
      const std::string component = std::move(todo_.back());
      todo_.pop_back();
      const int error = Step(component);
      if (error != 0) return error;
    }
    if (passed_.empty()) return OpenComponent(folder_, ".");
    return passed_.back().Release();
  }

 private:
  static int OpenComponent(int folder, const char* name) {
    const int fd = openat(folder, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
  }

  int here() const { return passed_.empty() ? folder_ : passed_.back().get(); }

  int Step(const std::string& component) {
    if (!here_is_folder_) return -ENOTDIR;
    if (component == ".") return 0;
    if (component == "..") {
      if (passed_.empty()) return -EXDEV;
      passed_.pop_back();
      return 0;
    }
    ScopedFd next(OpenComponent(here(), component.c_str()));
    if (!next.valid()) return -errno;
    struct stat state;
    if (fstat(next.get(), &state) != 0) return -errno;
    if (S_ISLNK(state.st_mode)) return Follow(next.get());
    if (passed_.size() >= kMaxWalkDepth) return -ENAMETOOLONG;
    here_is_folder_ = S_ISDIR(state.st_mode);
    passed_.push_back(std::move(next));
    return 0;
  }

  int Follow(int link) {
    if (++symlinks_ > kMaxSymlinks) return -ELOOP;
    std::string target;
    if (const int error = ReadLink(link, target); error != 0) return error;
    if (target.starts_with('/')) return -EXDEV;
    PushComponents(target, todo_);
    return 0;
  }

  const int folder_;
  std::vector<ScopedFd> passed_;
  std::vector<std::string> todo_;  // last one next
  int symlinks_ = 0;
  bool here_is_folder_ = true;
};

int Open(int folder, const std::string& path, BeneathStrategy strategy) {
  if (strategy != BeneathStrategy::kWalk) {
    const int fd = OpenWithKernel(folder, path);
    // EPERM is how container runtimes refuse system calls that they do not know; opening with
    // O_PATH has no other use for it.
    const bool forbidden = fd == -ENOSYS || fd == -EPERM;
    if (!forbidden || strategy == BeneathStrategy::kOpenat2) return fd;
  }
  return Walk(folder, path).Run();
}

}  // namespace

absl::StatusOr<std::string> NormalizeBelow(std::string_view path) {
  if (path.starts_with('/')) {
    return Error(Reason::kPathOutsideRoot,
                 fmt::format("path {} is absolute; paths are relative to a root", Quoted(path)))
        .With("file", Printable(path));
  }
  std::string out;
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view component = path.substr(begin, end - begin);
    begin = end + 1;
    if (component == "..") {
      return Error(Reason::kPathOutsideRoot,
                   fmt::format("path {} has a \"..\" component", Quoted(path)))
          .With("file", Printable(path));
    }
    if (component.empty() || component == ".") continue;
    if (!out.empty()) out.push_back('/');
    out.append(component);
  }
  return out.empty() ? "." : out;
}

absl::StatusOr<ScopedFd> OpenBeneath(int folder, const std::string& path,
                                     BeneathStrategy strategy) {
  const int fd = Open(folder, path, strategy);
  if (fd < 0) return PathError(-fd, path);
  return ScopedFd(fd);
}

absl::StatusOr<std::vector<std::string>> ListFolder(const ScopedFd& folder, std::string_view path) {
  ScopedFd readable(openat(folder.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!readable.valid()) return PathError(errno, path);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(readable.get()), closedir);
  if (stream == nullptr) return PathError(errno, path);
  readable.Release();  // the stream closes it
  std::vector<std::string> entries;
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(stream.get());
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    if (entries.size() >= kMaxFolderEntries) {
      return Error(Reason::kSourceNotFound,
                   fmt::format("{} has more than {} entries", Quoted(path), kMaxFolderEntries))
          .With("file", Printable(path));
    }
    entries.emplace_back(name);
  }
  if (errno != 0) return PathError(errno, path);
  std::sort(entries.begin(), entries.end());
  return entries;
}

absl::Status PathError(int error, std::string_view path) {
  const auto make = [&](Reason reason, std::string_view what) -> absl::Status {
    return Error(reason, fmt::format("{}: {}", Quoted(path), what)).With("file", Printable(path));
  };
  switch (error) {
    case EXDEV:
      return make(Reason::kPathOutsideRoot, "a symlink leads out of the root");
    case ENOENT:
      return make(Reason::kSourceNotFound, "nothing there");
    case ELOOP:
      return make(Reason::kSourceNotFound, "too many symlinks");
    case ENOTDIR:
    case EACCES:
    case ENAMETOOLONG:
      return make(Reason::kSourceNotFound, std::strerror(error));
    default:
      return make(Reason::kSourceUnavailable, std::strerror(error));
  }
}

}  // namespace adapterd
