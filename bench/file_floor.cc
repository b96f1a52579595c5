#include "bench/file_floor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "core/base/parallel.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int64_t kBlockBytes = 8 << 20;

// Calls body(begin, end) for one part of `bytes` a thread.
template <typename Body>
absl::Status ForParts(ThreadPool& pool, int64_t bytes, Body body) {
  const int64_t parts = pool.threads();
  return ParallelFor(pool, parts, Cancellation(), [&](int64_t part) -> absl::Status {
    return body(bytes * part / parts, bytes * (part + 1) / parts);
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<FileFloor>> FileFloor::Open(const std::filesystem::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, path.string());
  ASSIGN_OR_RETURN(InputFile file, InputFile::FromDescriptor(fd, path.filename()));
  std::unique_ptr<FileFloor> floor(new FileFloor(std::move(file)));
  floor->content_.resize(floor->bytes());
  RETURN_IF_ERROR(floor->file_.ReadAt(0, floor->content_));
  Sha256 digest;
  digest.Update(floor->content_);
  floor->sha256_ = digest.FinishHex();
  return floor;
}

absl::Status FileFloor::Map() {
  void* memory = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return absl::ErrnoToStatus(errno, "mmap");
  fresh_ = {static_cast<std::byte*>(memory), static_cast<size_t>(bytes())};
  return absl::OkStatus();
}

absl::Status FileFloor::Free() {
  if (munmap(fresh_.data(), fresh_.size()) != 0) return absl::ErrnoToStatus(errno, "munmap");
  fresh_ = {};
  return absl::OkStatus();
}

absl::Status FileFloor::ReadPart(int64_t begin, int64_t end) const {
  while (begin < end) {
    const int64_t count = std::min(kBlockBytes, end - begin);
    RETURN_IF_ERROR(file_.ReadAt(begin, fresh_.subspan(begin, count)));
    begin += count;
  }
  return absl::OkStatus();
}

absl::Status FileFloor::Read() {
  RETURN_IF_ERROR(Map());
  return ReadPart(0, bytes());
}

absl::Status FileFloor::ReadOn(ThreadPool& pool) {
  RETURN_IF_ERROR(Map());
  return ForParts(pool, bytes(),
                  [this](int64_t begin, int64_t end) { return ReadPart(begin, end); });
}

absl::Status FileFloor::DigestOn(ThreadPool& pool) const {
  return ForParts(pool, bytes(), [this](int64_t begin, int64_t end) {
    Sha256 digest;
    digest.Update(std::span(content_).subspan(begin, end - begin));
    return digest.FinishHex().empty() ? absl::InternalError("no digest") : absl::OkStatus();
  });
}

}  // namespace adapterd::bench
