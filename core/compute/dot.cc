#include "core/compute/dot.h"

#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace adapterd {
namespace {

// Each of several sums waits for its own last addition alone.
constexpr int kSums = 4;

float DotPortable(const float* a, const float* b, int64_t count) {
  constexpr int64_t kLanes = 16;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  float sum = 0;
  for (const float part : sums) sum += part;
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// The upper half cuts the value off, so that the rest is exact before it is rounded.
void SplitPortable(const float* values, int64_t count, std::byte* upper, std::byte* lower) {
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(values[i]);
    const auto rest = std::bit_cast<uint32_t>(values[i] - std::bit_cast<float>(bits & 0xffff0000u));
    const auto high = static_cast<uint16_t>(bits >> 16);
    const auto low = static_cast<uint16_t>((rest + 0x7fffu + ((rest >> 16) & 1u)) >> 16);
    std::memcpy(upper + 2 * i, &high, 2);
    std::memcpy(lower + 2 * i, &low, 2);
  }
}

#if defined(__x86_64__)

[[gnu::target("avx2,fma")]] float DotAvx2(const float* a, const float* b, int64_t count) {
  constexpr int64_t kLanes = 8;
  __m256 sums[kSums];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + kSums * kLanes <= count; i += kSums * kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) {
      sums[s] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + s * kLanes),
                                _mm256_loadu_ps(b + i + s * kLanes), sums[s]);
    }
  }
  float lanes[kLanes];
  _mm256_storeu_ps(lanes,
                   _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum + DotPortable(a + i, b + i, count - i);
}

// The upper 16 bits of eight words.
[[gnu::target("avx2")]] inline __m128i UpperHalves(__m256i words) {
  const __m256i upper = _mm256_srli_epi32(words, 16);
  const __m256i packed = _mm256_packus_epi32(upper, upper);  // within each half of the register
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

[[gnu::target("avx2")]] void SplitAvx2(const float* values, int64_t count, std::byte* upper,
                                       std::byte* lower) {
  constexpr int64_t kLanes = 8;
  const __m256i one = _mm256_set1_epi32(1);
  const __m256i bias = _mm256_set1_epi32(0x7fff);
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m256 value = _mm256_loadu_ps(values + i);
    const __m256i rest = _mm256_castps_si256(_mm256_sub_ps(value, _mm256_and_ps(value, mask)));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(rest, 16), one);
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(rest, bias), odd);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(upper + 2 * i),
                     UpperHalves(_mm256_castps_si256(value)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(lower + 2 * i), UpperHalves(rounded));
  }
  SplitPortable(values + i, count - i, upper + 2 * i, lower + 2 * i);
}

// Masked forms where those without have compilers warn of what they leave undefined.
constexpr __mmask16 kAll = 0xffff;

[[gnu::target("avx512f")]] float DotAvx512(const float* a, const float* b, int64_t count) {
  constexpr int64_t kLanes = 16;
  __m512 sums[kSums];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + kSums * kLanes <= count; i += kSums * kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) {
      sums[s] = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + s * kLanes),
                                _mm512_loadu_ps(b + i + s * kLanes), sums[s]);
    }
  }
  float lanes[kLanes];
  _mm512_storeu_ps(lanes,
                   _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum + DotPortable(a + i, b + i, count - i);
}

[[gnu::target("avx512f,avx512bw,avx512vl,avx512dq")]] void SplitAvx512(const float* values,
                                                                       int64_t count,
                                                                       std::byte* upper,
                                                                       std::byte* lower) {
  constexpr int64_t kLanes = 16;
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i bias = _mm512_set1_epi32(0x7fff);
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const auto store_upper = [](__m512i words, std::byte * to)
      __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) {
    const __m512i halves = _mm512_maskz_srli_epi32(kAll, words, 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtepi32_epi16(kAll, halves));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m512 value = _mm512_loadu_ps(values + i);
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i rest = _mm512_castps_si512(
        _mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_and_si512(bits, mask))));
    const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi32(kAll, rest, 16), one);
    store_upper(bits, upper + 2 * i);
    store_upper(_mm512_add_epi32(_mm512_add_epi32(rest, bias), odd), lower + 2 * i);
  }
  SplitPortable(values + i, count - i, upper + 2 * i, lower + 2 * i);
}

#endif

}  // namespace

std::vector<DotLoops> DotLoopsVariants() {
  std::vector<DotLoops> variants;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    variants.push_back({"avx512", DotAvx512, SplitAvx512});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    variants.push_back({"avx2", DotAvx2, SplitAvx2});
  }
#endif
  variants.push_back({"portable", DotPortable, SplitPortable});
  return variants;
}

const DotLoops& FastestDotLoops() {
  static const DotLoops fastest = DotLoopsVariants().front();
  return fastest;
}

}  // namespace adapterd
