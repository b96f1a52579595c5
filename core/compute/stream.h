// Stores that go past the cache, for memory that is written whole and not read soon: an ordinary
// store first fetches the line that it is going to overwrite.
#ifndef ADAPTERD_CORE_COMPUTE_STREAM_H_
#define ADAPTERD_CORE_COMPUTE_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor/aligned_buffer.h"

namespace adapterd {

inline constexpr int64_t kLineBytes = kBufferAlignment;

// Copies `count` lines that lie side by side to lines that begin `stride` bytes after each other.
// REQUIRES: `lines`, `to` and `stride` are multiples of kLineBytes.
void StreamLines(const std::byte* lines, int64_t count, std::byte* to, int64_t stride);

// Zeros lines. REQUIRES: `begin` and `end` are multiples of kLineBytes.
void StreamZeros(std::byte* begin, std::byte* end);

// Once after the last line, on the thread that wrote it, before any other thread may read: such
// stores take no part in the order that locks and atomics make.
void FinishStreams();

// What this CPU has, best first, for tests to hold against each other.
struct StreamVariant {
  const char* name;
  void (*lines)(const std::byte* lines, int64_t count, std::byte* to, int64_t stride);
  void (*zeros)(std::byte* begin, std::byte* end);
};
std::vector<StreamVariant> StreamVariants();

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_STREAM_H_
