#include "bench/copy.h"

#include <algorithm>
#include <cstring>

#include "core/base/parallel.h"

namespace adapterd::bench {
namespace {

constexpr int64_t kMinBytesPerThread = 256 << 10;

}  // namespace

int CopyThreads(const ThreadPool& pool, int64_t bytes) {
  return static_cast<int>(std::clamp<int64_t>(bytes / kMinBytesPerThread, 1, pool.threads()));
}

absl::Status ParallelCopy(ThreadPool& pool, const std::byte* source, std::byte* destination,
                          int64_t bytes) {
  const int64_t parts = CopyThreads(pool, bytes);
  return ParallelFor(pool, parts, Cancellation(), [&](int64_t part) {
    const int64_t first = bytes * part / parts;
    const int64_t last = bytes * (part + 1) / parts;
    std::memcpy(destination + first, source + first, static_cast<size_t>(last - first));
    return absl::OkStatus();
  });
}

}  // namespace adapterd::bench
