// memcpy, the floor under everything that only moves bytes, and its relatives.
#ifndef ADAPTERD_BENCH_COPY_H_
#define ADAPTERD_BENCH_COPY_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "core/base/thread_pool.h"

namespace adapterd::bench {

// Threads that share a copy of so many bytes: below 256 KiB each, waking another costs more than it
// saves.
int CopyThreads(const ThreadPool& pool, int64_t bytes);

// One memcpy on each of them. Uses `pool` as the arithmetic does, the caller being one thread.
absl::Status ParallelCopy(ThreadPool& pool, const std::byte* source, std::byte* destination,
                          int64_t bytes);

// Each on the calling thread. REQUIRES: whole lines of 64 bytes.
void PlainCopy(const std::byte* source, std::byte* destination, int64_t bytes);
// Stores go past the caches.
void StreamingCopy(const std::byte* source, std::byte* destination, int64_t bytes);
// Looks at every byte and writes none.
void ReadOnly(const std::byte* source, int64_t bytes);
// BF16 to F32, and back to the nearest one, NaN aside.
void Widen(const std::byte* bf16, std::byte* f32, int64_t count);
void Narrow(const std::byte* f32, std::byte* bf16, int64_t count);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_COPY_H_
