#include "core/formats/source_roots.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "core/base/name.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/formats/beneath.h"
#include "core/formats/scoped_fd.h"

namespace adapterd {
namespace {

Error InvalidSource(std::string_view source, std::string_view what) {
  return Error(Reason::kInvalidField, fmt::format("source {} {}", Quoted(source), what))
      .With("field", "source");
}

absl::Status NotFound(std::string_view path, std::string_view what) {
  return Error(Reason::kSourceNotFound, fmt::format("{} {}", Quoted(path), what))
      .With("file", Printable(path));
}

absl::StatusOr<mode_t> ModeOf(const ScopedFd& file, std::string_view path) {
  struct stat state;
  if (fstat(file.get(), &state) != 0) return PathError(errno, path);
  if (!S_ISREG(state.st_mode) && !S_ISDIR(state.st_mode)) {
    return NotFound(path, "is neither a folder nor a regular file");
  }
  return state.st_mode;
}

// Turns an O_PATH descriptor of a regular file into a readable one of the same inode, whatever its
// path leads to by now.
absl::StatusOr<ScopedFd> Reopen(const ScopedFd& pinned, std::string_view path) {
  const std::string self = fmt::format("/proc/self/fd/{}", pinned.get());
  ScopedFd readable(open(self.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!readable.valid()) return PathError(errno, path);
  return readable;
}

std::string Join(const std::string& folder, const std::string& name) {
  return folder == "." ? name : folder + "/" + name;
}

}  // namespace

SourceFolder::SourceFolder(std::shared_ptr<const int> root_fd, std::string path,
                           std::vector<std::string> entries)
    : root_fd_(std::move(root_fd)), path_(std::move(path)), entries_(std::move(entries)) {}

bool SourceFolder::Has(std::string_view name) const {
  return std::binary_search(entries_.begin(), entries_.end(), name);
}

absl::StatusOr<InputFile> SourceFolder::OpenFile(std::string_view name) const {
  ASSIGN_OR_RETURN(const std::string below, NormalizeBelow(name));
  if (below.find('\0') != std::string::npos) return NotFound(name, "holds a NUL byte");
  const std::string path = Join(path_, below);
  ASSIGN_OR_RETURN(const ScopedFd pinned, OpenBeneath(*root_fd_, path));
  ASSIGN_OR_RETURN(const mode_t mode, ModeOf(pinned, path));
  if (!S_ISREG(mode)) return NotFound(path, "is a folder, not a file");
  ASSIGN_OR_RETURN(ScopedFd readable, Reopen(pinned, path));
  return InputFile::FromDescriptor(readable.Release(), path);
}

absl::StatusOr<SourceRoots> SourceRoots::Open(const std::vector<Root>& roots) {
  std::vector<OpenRoot> open_roots;
  for (const Root& root : roots) {
    if (!root.name.empty() && !IsName(root.name)) {
      return Error(Reason::kInvalidField,
                   fmt::format("{} is not a name for a root: letters, digits and _ . - only, "
                               "beginning with none of the last two",
                               Quoted(root.name)));
    }
    for (const OpenRoot& other : open_roots) {
      if (other.name != root.name) continue;
      return Error(Reason::kInvalidField,
                   root.name.empty()
                       ? "more than one root has no name"
                       : fmt::format("more than one root is called {}", Quoted(root.name)));
    }
    ScopedFd fd(open(root.path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd.valid()) {
      return NotFound(root.path, fmt::format("cannot be a root: {}", std::strerror(errno)));
    }
    open_roots.push_back({root.name, std::shared_ptr<const int>(new int(fd.get()), [](int* owned) {
                            close(*owned);
                            delete owned;
                          })});
    fd.Release();
  }
  return SourceRoots(std::move(open_roots));
}

absl::StatusOr<SourceRoots::Located> SourceRoots::Locate(std::string_view source) const {
  if (source.empty()) return InvalidSource(source, "is empty");
  if (source.size() > kMaxSourceBytes) {
    return InvalidSource(source, fmt::format("is longer than {} bytes", kMaxSourceBytes));
  }
  if (source.find('\0') != std::string_view::npos) {
    return InvalidSource(source, "holds a NUL byte");
  }
  const OpenRoot* root = Find("");
  std::string_view path = source;
  const std::string_view prefix = source.substr(0, source.find(':'));
  if (prefix.size() < source.size() && IsName(prefix)) {
    const OpenRoot* named = Find(prefix);
    if (named == nullptr && root == nullptr) {
      return InvalidSource(source, fmt::format("names the unknown root {}", Quoted(prefix)));
    }
    if (named != nullptr) {
      root = named;
      path.remove_prefix(prefix.size() + 1);
    }
  }
  if (root == nullptr) {
    return InvalidSource(source, "names no root (NAME:path), and there is no unnamed one");
  }
  if (path.empty()) return InvalidSource(source, "has no path; the root itself is \".\"");
  ASSIGN_OR_RETURN(std::string normalized, NormalizeBelow(path));
  return Located{root->fd, std::move(normalized)};
}

const SourceRoots::OpenRoot* SourceRoots::Find(std::string_view name) const {
  const auto found = std::find_if(roots_.begin(), roots_.end(),
                                  [&](const OpenRoot& root) { return root.name == name; });
  return found == roots_.end() ? nullptr : &*found;
}

absl::StatusOr<SourceFolder> SourceRoots::OpenFolder(std::string_view source) const {
  ASSIGN_OR_RETURN(Located located, Locate(source));
  ASSIGN_OR_RETURN(const ScopedFd pinned, OpenBeneath(*located.root, located.path));
  ASSIGN_OR_RETURN(const mode_t mode, ModeOf(pinned, located.path));
  if (S_ISREG(mode)) {
    const size_t slash = located.path.rfind('/');
    const bool at_root = slash == std::string::npos;
    std::string folder = at_root ? "." : located.path.substr(0, slash);
    std::string name = at_root ? located.path : located.path.substr(slash + 1);
    return SourceFolder(located.root, std::move(folder), {std::move(name)});
  }
  ASSIGN_OR_RETURN(std::vector<std::string> entries, ListFolder(pinned, located.path));
  return SourceFolder(located.root, std::move(located.path), std::move(entries));
}

absl::StatusOr<bool> SourceRoots::IsFile(std::string_view source) const {
  ASSIGN_OR_RETURN(const Located located, Locate(source));
  ASSIGN_OR_RETURN(const ScopedFd pinned, OpenBeneath(*located.root, located.path));
  ASSIGN_OR_RETURN(const mode_t mode, ModeOf(pinned, located.path));
  return S_ISREG(mode);
}

std::vector<std::shared_ptr<const int>> SourceRoots::folders() const {
  std::vector<std::shared_ptr<const int>> folders;
  for (const OpenRoot& root : roots_) folders.push_back(root.fd);
  return folders;
}

std::vector<std::string> SourceRoots::names() const {
  std::vector<std::string> names;
  for (const OpenRoot& root : roots_) names.push_back(root.name);
  return names;
}

}  // namespace adapterd
