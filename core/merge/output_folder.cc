#include "core/merge/output_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <span>
#include <system_error>

#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/formats/beneath.h"

namespace adapterd {
namespace {

namespace fs = std::filesystem;

// Of names for an unfinished folder, each of which somebody else would have to take at that
// instant.
constexpr int kAttempts = 16;
// Read and written at once.
constexpr int64_t kCopyBytes = int64_t{1} << 20;

absl::Status OutputError(Reason reason, std::string_view output, std::string_view what) {
  return Error(reason, fmt::format("output: {} {}", Quoted(output), what))
      .With("field", "output")
      .With("file", Printable(output));
}

absl::Status WriteError(int error, std::string_view name) {
  return Annotate(DiskError(-error, fmt::format("cannot write {} of the output", Quoted(name))),
                  "file", Printable(name));
}

bool IsSame(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// Of a folder whose descriptor stays open meanwhile.
fs::path PathOf(int folder, std::string_view name) {
  return fs::path(fmt::format("/proc/self/fd/{}", folder)) / name;
}

void RemoveAll(int folder, std::string_view name) {
  std::error_code ignored;  // the next start tries again
  fs::remove_all(PathOf(folder, name), ignored);
}

absl::StatusOr<struct stat> StateOf(const ScopedFd& fd, std::string_view path) {
  struct stat state;
  if (fstat(fd.get(), &state) != 0) return PathError(errno, path);
  return state;
}

}  // namespace

absl::StatusOr<std::unique_ptr<OutputFolder>> OutputFolder::Begin(const SourceRoots& roots,
                                                                  const std::string& output,
                                                                  const SourceRoots& source_roots,
                                                                  const std::string& source,
                                                                  std::shared_ptr<Disk> disk) {
  absl::StatusOr<SourceRoots::Located> located = roots.Locate(output);
  if (!located.ok()) return Annotate(located.status(), "field", "output");
  ASSIGN_OR_RETURN(const SourceRoots::Located from, source_roots.Locate(source));
  ASSIGN_OR_RETURN(const ScopedFd source_folder, OpenBeneath(*from.root, from.path));
  ASSIGN_OR_RETURN(const struct stat source_state, StateOf(source_folder, from.path));
  std::unique_ptr<OutputFolder> folder(
      new OutputFolder(located->root, std::move(located->path), std::move(disk)));
  RETURN_IF_ERROR(folder->FindPlace());
  RETURN_IF_ERROR(folder->CheckPlace(source_state));
  RETURN_IF_ERROR(folder->MakeUnfinished());
  return folder;
}

absl::Status OutputFolder::FindPlace() {
  if (output_ == ".") return OutputError(Reason::kOutputExists, output_, "is the root itself");
  missing_ = absl::StrSplit(output_, '/');
  for (const std::string& component : missing_) {
    if (component.starts_with(kUnfinishedPrefix)) {
      return OutputError(Reason::kInvalidField, output_, "has the name of an unfinished folder");
    }
  }
  ASSIGN_OR_RETURN(place_, OpenBeneath(*root_, "."));
  std::string path;
  while (!missing_.empty()) {
    struct stat state;
    if (fstatat(place_.get(), missing_[0].c_str(), &state, AT_SYMLINK_NOFOLLOW) != 0) {
      return errno == ENOENT ? absl::OkStatus() : PathError(errno, output_);
    }
    if (missing_.size() == 1) break;
    path += (path.empty() ? "" : "/") + missing_[0];
    ASSIGN_OR_RETURN(place_, OpenBeneath(*root_, path));
    ASSIGN_OR_RETURN(state, StateOf(place_, path));
    if (!S_ISDIR(state.st_mode)) {
      return OutputError(Reason::kSourceNotFound, output_,
                         fmt::format("has {} above it, which is no folder", Quoted(path)));
    }
    missing_.erase(missing_.begin());
  }
  return OutputError(Reason::kOutputExists, output_, "exists");
}

absl::Status OutputFolder::CheckPlace(const struct stat& source) const {
  ASSIGN_OR_RETURN(const ScopedFd root, OpenBeneath(*root_, "."));
  ASSIGN_OR_RETURN(const struct stat root_state, StateOf(root, "."));
  ASSIGN_OR_RETURN(struct stat state, StateOf(place_, output_));
  if (state.st_dev != root_state.st_dev) {
    return OutputError(Reason::kInvalidField, output_,
                       "lies on another file system than the output root");
  }
  // Up to the root, however many symlinks led here.
  ScopedFd folder(openat(place_.get(), ".", O_PATH | O_DIRECTORY | O_CLOEXEC));
  while (folder.valid()) {
    ASSIGN_OR_RETURN(state, StateOf(folder, output_));
    if (IsSame(state, source)) {
      return OutputError(Reason::kInvalidField, output_, "lies inside the source");
    }
    if (IsSame(state, root_state)) return absl::OkStatus();
    folder = ScopedFd(openat(folder.get(), "..", O_PATH | O_DIRECTORY | O_CLOEXEC));
  }
  return PathError(errno, output_);
}

absl::Status OutputFolder::MakeUnfinished() {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const std::string name =
        fmt::format("{}{:x}-{}", kUnfinishedPrefix, absl::GetCurrentTimeNanos(), attempt);
    const int made = disk_->MakeFolder(*root_, name);
    if (made == -EEXIST) continue;
    if (made < 0) return DiskError(-made, "cannot make a folder below the output root");
    const int opened = disk_->OpenFolder(*root_, name);
    if (opened < 0) {
      RemoveAll(*root_, name);
      return DiskError(-opened, "cannot open a folder below the output root");
    }
    ScopedFd folder(opened);
    // A process that starts at this instant may have taken it for one that is left.
    struct stat state;
    if (flock(folder.get(), LOCK_EX | LOCK_NB) != 0 || fstat(folder.get(), &state) != 0 ||
        state.st_nlink == 0) {
      continue;
    }
    name_ = name;
    unfinished_ = std::move(folder);
    for (size_t i = 1; i < missing_.size(); ++i) {
      const int parent = target();
      const int inside = disk_->MakeFolder(parent, missing_[i]);
      if (inside < 0) return DiskError(-inside, "cannot make a folder below the output root");
      const int next = disk_->OpenFolder(parent, missing_[i]);
      if (next < 0) return DiskError(-next, "cannot open a folder below the output root");
      inner_.emplace_back(next);
    }
    return absl::OkStatus();
  }
  return DiskError(EEXIST, "cannot make a folder below the output root");
}

OutputFolder::~OutputFolder() {
  if (!name_.empty()) RemoveAll(*root_, name_);
}

absl::StatusOr<ScopedFd> OutputFolder::Create(const std::string& name, int64_t bytes) {
  const int file = disk_->CreateFile(target(), name);
  if (file < 0) return WriteError(file, name);
  ScopedFd owned(file);
  if (const int error = disk_->Allocate(file, bytes); error < 0) return WriteError(error, name);
  files_.push_back(name);
  return owned;
}

absl::Status OutputFolder::Sync(const ScopedFd& file, std::string_view name) {
  const int error = disk_->Sync(file.get());
  return error < 0 ? WriteError(error, name) : absl::OkStatus();
}

absl::Status OutputFolder::WriteAll(const ScopedFd& file, std::string_view name, int64_t offset,
                                    std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const int64_t written = disk_->WriteAt(file.get(), offset, bytes);
    if (written < 0) return WriteError(static_cast<int>(written), name);
    offset += written;
    bytes = bytes.subspan(written);
  }
  return absl::OkStatus();
}

absl::Status OutputFolder::WriteFile(const std::string& name, std::string_view bytes) {
  ASSIGN_OR_RETURN(const ScopedFd file, Create(name, static_cast<int64_t>(bytes.size())));
  RETURN_IF_ERROR(WriteAll(file, name, 0, std::as_bytes(std::span<const char>(bytes))));
  return Sync(file, name);
}

absl::Status OutputFolder::CopyFile(const std::string& name, const InputFile& from,
                                    const Cancellation& cancellation) {
  ASSIGN_OR_RETURN(const ScopedFd file, Create(name, from.size()));
  std::vector<std::byte> buffer(std::min(kCopyBytes, from.size()));
  for (int64_t offset = 0; offset < from.size(); offset += kCopyBytes) {
    RETURN_IF_ERROR(cancellation.Check());
    const auto block = std::span(buffer).first(std::min(kCopyBytes, from.size() - offset));
    RETURN_IF_ERROR(from.ReadAt(offset, block));
    RETURN_IF_ERROR(WriteAll(file, name, offset, block));
  }
  return Sync(file, name);
}

std::vector<std::string> OutputFolder::files() const {
  std::vector<std::string> files = files_;
  std::ranges::sort(files);
  return files;
}

absl::Status OutputFolder::Commit() {
  for (const ScopedFd& folder : inner_) RETURN_IF_ERROR(Sync(folder, output_));
  RETURN_IF_ERROR(Sync(unfinished_, output_));
  // Each further round: somebody else made a folder above the output meanwhile.
  std::string from = name_;
  ScopedFd place(openat(place_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (size_t i = 0; i < missing_.size(); ++i) {
    if (!place.valid()) return PathError(errno, output_);
    if (i > 0) from += "/" + missing_[i];
    const int error = disk_->RenameNew(*root_, from, place.get(), missing_[i]);
    if (error == 0) {
      if (i == 0) name_.clear();
      // It is there; that a loss of power might undo the move is all that is left to go wrong.
      return Sync(place, output_);
    }
    if (error != -EEXIST) return WriteError(error, output_);
    place = ScopedFd(
        openat(place.get(), missing_[i].c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  }
  return OutputError(Reason::kOutputExists, output_, "exists: it was made meanwhile");
}

void OutputFolder::RemoveUnfinished(const SourceRoots& roots) {
  for (const std::shared_ptr<const int>& root : roots.folders()) {
    std::vector<std::string> names;
    std::error_code error;
    fs::directory_iterator it(PathOf(*root, ""), error);
    for (const fs::directory_iterator end; !error && it != end; it.increment(error)) {
      std::string name = it->path().filename();
      if (name.starts_with(kUnfinishedPrefix)) names.push_back(std::move(name));
    }
    for (const std::string& name : names) {
      const ScopedFd folder(
          openat(*root, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      // Another process that shares the root may still be at it.
      if (folder.valid() && flock(folder.get(), LOCK_EX | LOCK_NB) == 0) RemoveAll(*root, name);
    }
  }
}

}  // namespace adapterd
