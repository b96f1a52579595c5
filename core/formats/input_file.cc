#include "core/formats/input_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/formats/scoped_fd.h"

namespace adapterd {
namespace {

int64_t Nanoseconds(const timespec& time) { return time.tv_sec * 1'000'000'000 + time.tv_nsec; }

absl::Status Unavailable(std::string_view name, int error) {
  return Error(Reason::kSourceUnavailable,
               fmt::format("file {} cannot be read: {}", Quoted(name), std::strerror(error)))
      .With("file", Printable(name));
}

absl::Status Changed(std::string_view name, std::string_view what) {
  return Error(Reason::kSourceChanged,
               fmt::format("file {} changed while it was read: {}", Quoted(name), what))
      .With("file", Printable(name));
}

}  // namespace

FileIdentity IdentityOf(const struct stat& state) {
  return {.device = state.st_dev,
          .inode = state.st_ino,
          .size = state.st_size,
          .modified_ns = Nanoseconds(state.st_mtim),
          .changed_ns = Nanoseconds(state.st_ctim)};
}

InputFile::InputFile(int fd, std::string name, FileIdentity identity)
    : fd_(fd), name_(std::move(name)), identity_(identity) {}

InputFile::~InputFile() {
  if (fd_ >= 0) close(fd_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      name_(std::move(other.name_)),
      identity_(other.identity_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(name_, other.name_);
  std::swap(identity_, other.identity_);
  return *this;
}

absl::StatusOr<InputFile> InputFile::FromDescriptor(int fd, std::string name) {
  ScopedFd owned(fd);
  struct stat state;
  if (fstat(fd, &state) != 0) return Unavailable(name, errno);
  if (!S_ISREG(state.st_mode)) {
    return Error(Reason::kSourceNotFound, fmt::format("{} is not a regular file", Quoted(name)))
        .With("file", Printable(name));
  }
  return InputFile(owned.Release(), std::move(name), IdentityOf(state));
}

absl::Status InputFile::ReadAt(int64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t count = pread(fd_, out.data(), out.size(), offset);
    if (count < 0) {
      if (errno == EINTR) continue;
      return Unavailable(name_, errno);
    }
    if (count == 0) return Changed(name_, fmt::format("it ends at byte {}", offset));
    out = out.subspan(count);
    offset += count;
  }
  return absl::OkStatus();
}

absl::Status InputFile::CheckUnchanged() const {
  struct stat state;
  if (fstat(fd_, &state) != 0) return Unavailable(name_, errno);
  const FileIdentity now = IdentityOf(state);
  if (now == identity_) return absl::OkStatus();
  if (now.size != identity_.size) {
    return Changed(name_, fmt::format("{} bytes became {}", identity_.size, now.size));
  }
  return Changed(name_, "it was written to, replaced or renamed");
}

absl::StatusOr<std::string> ReadSmallFile(const InputFile& file, int64_t max_bytes) {
  if (file.size() > max_bytes) {
    return Error(Reason::kMalformedConfig,
                 fmt::format("file {} has {} bytes, more than the {} allowed for its kind",
                             Quoted(file.name()), file.size(), max_bytes))
        .With("file", Printable(file.name()))
        .With("expected", fmt::format("at most {} bytes", max_bytes))
        .With("actual", fmt::format("{} bytes", file.size()));
  }
  std::string text(file.size(), '\0');
  RETURN_IF_ERROR(file.ReadAt(0, std::as_writable_bytes(std::span(text))));
  RETURN_IF_ERROR(file.CheckUnchanged());
  return text;
}

}  // namespace adapterd
