#include "core/compute/nf4_rows.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace adapterd {

#if defined(__x86_64__)

namespace {

#define ADAPTERD_AVX512 [[gnu::target("avx512f,avx512bw,avx512vl,avx512dq")]]

// Masked forms where those without have compilers warn of what they leave undefined.
constexpr __mmask16 kAll = 0xffff;
constexpr int64_t kLanes = 16;
constexpr int kCodesPerLane = 8;

ADAPTERD_AVX512 inline __m512i LoadCodes(const Nf4Matrix& matrix, int64_t element) {
  return _mm512_loadu_si512(matrix.codes().data() + element / 2);
}

// The levels of one code of each lane. A permutation looks at the four lowest bits alone.
ADAPTERD_AVX512 inline __m512 Levels(__m512i codes, int which) {
  const __m512 levels = _mm512_loadu_ps(kNf4Levels.data());
  const __m512i shifted = _mm512_maskz_srl_epi32(kAll, codes, _mm_cvtsi32_si128(4 * which));
  return _mm512_maskz_permutexvar_ps(kAll, shifted, levels);
}

// What the levels of each lane are multiplied by.
ADAPTERD_AVX512 inline __m512 Scales(const Nf4Matrix& matrix, int64_t element) {
  const float* absmax = matrix.absmax().data() + element / matrix.block_size();
  const __m512 first = _mm512_set1_ps(absmax[0]);
  if (matrix.block_size() >= kNf4Group) return first;
  return _mm512_mask_blend_ps(0xff00, first, _mm512_set1_ps(absmax[1]));
}

ADAPTERD_AVX512 float DotAvx512(const Nf4Matrix& matrix, int64_t first, int64_t count,
                                const float* shuffled) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += kNf4Group) {
    const __m512i codes = LoadCodes(matrix, first + i);
    __m512 even = _mm512_setzero_ps();
    __m512 odd = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int j = 0; j < kCodesPerLane; j += 2) {
      const float* x = shuffled + i + j * kLanes;
      even = _mm512_fmadd_ps(Levels(codes, j), _mm512_loadu_ps(x), even);
      odd = _mm512_fmadd_ps(Levels(codes, j + 1), _mm512_loadu_ps(x + kLanes), odd);
    }
    sum = _mm512_fmadd_ps(_mm512_add_ps(even, odd), Scales(matrix, first + i), sum);
  }
  float lanes[kLanes];
  _mm512_storeu_ps(lanes, sum);
  float result = 0;
  for (const float lane : lanes) result += lane;
  return result;
}

// Of 32 words, the first 16 of which are `low`.
ADAPTERD_AVX512 inline void StoreUpperHalves(__m512i low, __m512i high, std::byte* to) {
  const __m512i odd =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                       25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(low, odd, high));
}

// A value as the sum of its upper half and of what is left, whose upper half is rounded.
struct SplitWords {
  __m512i upper;
  __m512i rest;
};

ADAPTERD_AVX512 inline SplitWords Split(__m512 value) {
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i upper = _mm512_castps_si512(value);
  const __m512i rest =
      _mm512_castps_si512(_mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_and_si512(upper, mask))));
  const __m512i odd =
      _mm512_and_si512(_mm512_maskz_srli_epi32(kAll, rest, 16), _mm512_set1_epi32(1));
  return {upper, _mm512_add_epi32(_mm512_add_epi32(rest, _mm512_set1_epi32(0x7fff)), odd)};
}

ADAPTERD_AVX512 void SplitAvx512(const Nf4Matrix& matrix, int64_t first, int64_t count,
                                 std::byte* upper, std::byte* lower) {
  for (int64_t i = 0; i < count; i += kNf4Group) {
    const __m512i codes = LoadCodes(matrix, first + i);
    const __m512 scales = Scales(matrix, first + i);
#pragma GCC unroll 4
    for (int j = 0; j < kCodesPerLane; j += 2) {
      const SplitWords low = Split(_mm512_mul_ps(Levels(codes, j), scales));
      const SplitWords high = Split(_mm512_mul_ps(Levels(codes, j + 1), scales));
      const int64_t at = 2 * (i + j * kLanes);
      StoreUpperHalves(low.upper, high.upper, upper + at);
      StoreUpperHalves(low.rest, high.rest, lower + at);
    }
  }
}

#undef ADAPTERD_AVX512

}  // namespace

Nf4Rows RowsOf(const Nf4Matrix& matrix) {
  static const bool has_avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const int64_t block = matrix.block_size();
  const bool fits =
      matrix.cols() % kNf4Group == 0 && (block % kNf4Group == 0 || block == kNf4Group / 2);
  return has_avx512 && fits ? Nf4Rows{DotAvx512, SplitAvx512} : Nf4Rows{};
}

#else

Nf4Rows RowsOf(const Nf4Matrix&) { return {}; }

#endif

}  // namespace adapterd
