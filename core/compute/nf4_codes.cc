#include "core/compute/nf4_codes.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/compute/nf4.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace adapterd {
namespace {

[[gnu::always_inline]] inline void Encode(const float* values, int64_t count,
                                          const Nf4Limits& limits, uint8_t* codes) {
  for (int64_t i = 0; i < count; ++i) {
    int code = 0;
    for (const float limit : limits) code += values[i] > limit ? 1 : 0;
    codes[i] = static_cast<uint8_t>(code);
  }
}

float LevelOf(const std::byte* codes, int64_t element) {
  const auto both = static_cast<uint8_t>(codes[element / 2]);
  return kNf4Levels[element % 2 == 0 ? both >> 4 : both & 0xf];
}

void EncodePortable(const float* values, int64_t count, const Nf4Limits& limits, uint8_t* codes) {
  Encode(values, count, limits, codes);
}

void DecodeRun(const std::byte* codes, int64_t first, int64_t count, float absmax, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = LevelOf(codes, first + i) * absmax;
}

// Calls kDecodeRun for each run of elements that share an absmax.
template <auto kDecodeRun>
[[gnu::always_inline]] inline void DecodeRuns(const Nf4View& matrix, int64_t first, int64_t count,
                                              float* to) {
  int64_t block = first / matrix.block_size;
  for (const int64_t end = first + count; first < end; ++block) {
    const int64_t run = std::min(end, (block + 1) * matrix.block_size) - first;
    kDecodeRun(matrix.codes, first, run, matrix.absmax[block], to);
    first += run;
    to += run;
  }
}

void DecodePortable(const Nf4View& matrix, int64_t first, int64_t count, float* to) {
  DecodeRuns<DecodeRun>(matrix, first, count, to);
}

#if defined(__x86_64__)

[[gnu::target("avx2")]] void EncodeAvx2(const float* values, int64_t count, const Nf4Limits& limits,
                                        uint8_t* codes) {
  Encode(values, count, limits, codes);
}

[[gnu::target("avx512f,avx512bw,avx512vl")]] void EncodeAvx512(const float* values, int64_t count,
                                                               const Nf4Limits& limits,
                                                               uint8_t* codes) {
  Encode(values, count, limits, codes);
}

// Each byte twice: for the element in its upper half and for that in its lower one.
[[gnu::target("avx2")]] inline __m128i Doubled(__m128i bytes) {
  return _mm_unpacklo_epi8(bytes, bytes);
}

[[gnu::target("avx2")]] inline void DecodeRunAvx2(const std::byte* codes, int64_t first,
                                                  int64_t count, float absmax, float* to) {
  constexpr int64_t kLanes = 8;
  const int64_t odd = first % 2;  // such a run begins in the middle of a byte
  if (odd == 1) to[0] = LevelOf(codes, first) * absmax;
  const __m256 low = _mm256_loadu_ps(kNf4Levels.data());
  const __m256 high = _mm256_loadu_ps(kNf4Levels.data() + kLanes);
  const __m256i shifts = _mm256_setr_epi32(4, 0, 4, 0, 4, 0, 4, 0);
  const __m256 scale = _mm256_set1_ps(absmax);
  int64_t i = odd;
  for (; i + kLanes <= count; i += kLanes) {
    const __m128i bytes = _mm_loadu_si32(codes + (first + i) / 2);
    // A permutation looks at the three lowest bits; the fourth, moved to the sign, tells the half.
    const __m256i code = _mm256_srlv_epi32(_mm256_cvtepu8_epi32(Doubled(bytes)), shifts);
    const __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
    const __m256 level = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, code),
                                          _mm256_permutevar8x32_ps(high, code), is_high);
    _mm256_storeu_ps(to + i, _mm256_mul_ps(level, scale));
  }
  for (; i < count; ++i) to[i] = LevelOf(codes, first + i) * absmax;
}

[[gnu::target("avx2")]] void DecodeAvx2(const Nf4View& matrix, int64_t first, int64_t count,
                                        float* to) {
  DecodeRuns<DecodeRunAvx2>(matrix, first, count, to);
}

[[gnu::target("avx512f,avx512bw,avx512vl")]] inline void DecodeRunAvx512(const std::byte* codes,
                                                                         int64_t first,
                                                                         int64_t count,
                                                                         float absmax, float* to) {
  constexpr int64_t kLanes = 16;
  constexpr __mmask16 kAll = 0xffff;
  const int64_t odd = first % 2;  // such a run begins in the middle of a byte
  if (odd == 1) to[0] = LevelOf(codes, first) * absmax;
  const __m512 levels = _mm512_loadu_ps(kNf4Levels.data());
  const __m512i shifts = _mm512_setr_epi32(4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0);
  const __m512 scale = _mm512_set1_ps(absmax);
  int64_t i = odd;
  for (; i + kLanes <= count; i += kLanes) {
    const __m128i bytes = _mm_loadu_si64(codes + (first + i) / 2);
    // The permutation looks at the four lowest bits alone. Masked forms, because those without have
    // compilers warn of what they leave undefined.
    const __m512i wide = _mm512_maskz_cvtepu8_epi32(kAll, Doubled(bytes));
    const __m512i code = _mm512_maskz_srlv_epi32(kAll, wide, shifts);
    const __m512 level = _mm512_maskz_permutexvar_ps(kAll, code, levels);
    _mm512_storeu_ps(to + i, _mm512_mul_ps(level, scale));
  }
  for (; i < count; ++i) to[i] = LevelOf(codes, first + i) * absmax;
}

[[gnu::target("avx512f,avx512bw,avx512vl")]] void DecodeAvx512(const Nf4View& matrix, int64_t first,
                                                               int64_t count, float* to) {
  DecodeRuns<DecodeRunAvx512>(matrix, first, count, to);
}

#endif

}  // namespace

Nf4Limits LimitsFor(float absmax) {
  Nf4Limits limits;
  for (size_t i = 0; i < limits.size(); ++i) {
    // Exact in double: 25 bits x 24.
    const double middle = (double{kNf4Levels[i]} + double{kNf4Levels[i + 1]}) / 2 * absmax;
    limits[i] = static_cast<float>(middle);
    if (limits[i] > middle) {
      limits[i] = std::nextafter(limits[i], -std::numeric_limits<float>::infinity());
    }
  }
  return limits;
}

std::vector<Nf4Codes> Nf4CodesVariants() {
  std::vector<Nf4Codes> variants;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    variants.push_back({"avx512", EncodeAvx512, DecodeAvx512});
  }
  if (__builtin_cpu_supports("avx2")) variants.push_back({"avx2", EncodeAvx2, DecodeAvx2});
#endif
  variants.push_back({"portable", EncodePortable, DecodePortable});
  return variants;
}

const Nf4Codes& FastestNf4Codes() {
  static const Nf4Codes fastest = Nf4CodesVariants().front();
  return fastest;
}

}  // namespace adapterd
