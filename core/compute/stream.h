// Stores that go past the cache, for memory that is written whole and not read soon: an ordinary
// store first fetches the line that it is going to overwrite.
#ifndef ADAPTERD_CORE_COMPUTE_STREAM_H_
#define ADAPTERD_CORE_COMPUTE_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/tensor/aligned_buffer.h"
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace adapterd {

inline constexpr int64_t kLineBytes = kBufferAlignment;

// Copies one line. REQUIRES: both begin on a line.
inline void StreamLine(const std::byte* from, std::byte* to) {
#if defined(__x86_64__)
  const auto* source = reinterpret_cast<const __m128i*>(from);
  auto* destination = reinterpret_cast<__m128i*>(to);
  const __m128i parts[] = {_mm_load_si128(source), _mm_load_si128(source + 1),
                           _mm_load_si128(source + 2), _mm_load_si128(source + 3)};
  for (int i = 0; i < 4; ++i) _mm_stream_si128(destination + i, parts[i]);
#else
  std::memcpy(to, from, kLineBytes);
#endif
}

// Zeros. REQUIRES: both are on a line's boundary.
inline void StreamZeros(std::byte* begin, const std::byte* end) {
  alignas(kLineBytes) static constexpr std::byte kZeros[kLineBytes] = {};
  for (; begin != end; begin += kLineBytes) StreamLine(kZeros, begin);
}

// Once after the last line, on the thread that wrote it, before any other thread may read: such
// stores take no part in the order that locks and atomics make.
inline void FinishStreams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_STREAM_H_
