#include "bench/copy.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/base/parallel.h"
#include "core/compute/stream.h"

// For the widest vectors that the CPU has, whatever the build is for.
#if defined(__x86_64__)
#define ADAPTERD_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ADAPTERD_WIDE
#endif

namespace adapterd::bench {
namespace {

constexpr int64_t kMinBytesPerThread = 256 << 10;

// Eight lines at a time, in sums of their own: one would wait for the other's addition.
ADAPTERD_WIDE uint64_t Sum(const uint64_t* words, int64_t count) {
  constexpr int64_t kLanes = 64;
  uint64_t sums[kLanes] = {};
  for (int64_t i = 0; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += words[i + lane];
  }
  uint64_t sum = 0;
  for (const uint64_t lane : sums) sum += lane;
  return sum;
}

ADAPTERD_WIDE void WidenBits(const uint16_t* __restrict from, uint32_t* __restrict to,
                             int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = uint32_t{from[i]} << 16;
}

ADAPTERD_WIDE void NarrowBits(const uint32_t* __restrict from, uint16_t* __restrict to,
                              int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = static_cast<uint16_t>((from[i] + 0x7fff + ((from[i] >> 16) & 1)) >> 16);
  }
}

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

void PlainCopy(const std::byte* source, std::byte* destination, int64_t bytes) {
  std::memcpy(destination, source, static_cast<size_t>(bytes));
}

void StreamingCopy(const std::byte* source, std::byte* destination, int64_t bytes) {
  StreamLines(source, bytes / kLineBytes, destination, kLineBytes);
  FinishStreams();
}

void ReadOnly(const std::byte* source, int64_t bytes) {
  static std::atomic<uint64_t> sink;  // so that no compiler leaves the reading out
  sink.store(Sum(reinterpret_cast<const uint64_t*>(source),
                 bytes / static_cast<int64_t>(sizeof(uint64_t))),
             std::memory_order_relaxed);
}

void Widen(const std::byte* bf16, std::byte* f32, int64_t count) {
  WidenBits(reinterpret_cast<const uint16_t*>(bf16), reinterpret_cast<uint32_t*>(f32), count);
}

void Narrow(const std::byte* f32, std::byte* bf16, int64_t count) {
  NarrowBits(reinterpret_cast<const uint32_t*>(f32), reinterpret_cast<uint16_t*>(bf16), count);
}

}  // namespace adapterd::bench
