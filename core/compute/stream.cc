#include "core/compute/stream.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace adapterd {
namespace {

void LinesPortable(const std::byte* lines, int64_t count, std::byte* to, int64_t stride) {
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(to + i * stride, lines + i * kLineBytes, kLineBytes);
}

void ZerosPortable(std::byte* begin, std::byte* end) { std::fill(begin, end, std::byte{0}); }

#if defined(__x86_64__)

// Two stores a line keep the memory busier than four, and one is no better than two.
[[gnu::target("avx")]] void LinesAvx(const std::byte* lines, int64_t count, std::byte* to,
                                     int64_t stride) {
  for (int64_t i = 0; i < count; ++i, lines += kLineBytes, to += stride) {
    const auto* from = reinterpret_cast<const __m256i*>(lines);
    const __m256i low = _mm256_load_si256(from);
    const __m256i high = _mm256_load_si256(from + 1);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to) + 1, high);
  }
}

[[gnu::target("avx")]] void ZerosAvx(std::byte* begin, std::byte* end) {
  const __m256i zero = _mm256_setzero_si256();
  for (; begin != end; begin += sizeof(zero)) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(begin), zero);
  }
}

#endif

const StreamVariant& Chosen() {
  static const StreamVariant chosen = StreamVariants().front();
  return chosen;
}

}  // namespace

std::vector<StreamVariant> StreamVariants() {
  std::vector<StreamVariant> variants;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx")) variants.push_back({"avx", LinesAvx, ZerosAvx});
#endif
  variants.push_back({"portable", LinesPortable, ZerosPortable});
  return variants;
}

void StreamLines(const std::byte* lines, int64_t count, std::byte* to, int64_t stride) {
  Chosen().lines(lines, count, to, stride);
}

void StreamZeros(std::byte* begin, std::byte* end) { Chosen().zeros(begin, end); }

void FinishStreams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace adapterd
