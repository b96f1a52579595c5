#include "core/tensor/convert.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace adapterd {

// The scalar forms are branch-light integer code that compilers turn into vector code. The F16 ones
// also exist on F16C, chosen at run time, because the integer form is several times slower.

float F16ToF32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t fraction = bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction x 2^-24, exact in binary32
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  if (exponent == 0x1f) {
    const uint32_t quiet = fraction != 0 ? 0x400000u : 0u;
    return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13) | quiet);
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

uint16_t F32ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return sign | 0x7e00u | static_cast<uint16_t>((magnitude >> 13) & 0x1ffu);
  }
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {
    // Below the smallest normal, 2^-14. Adding 0.5 leaves a result whose last place is 2^-24, the
    // step of binary16's subnormals, so the addition itself rounds to nearest even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000u);
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return sign | static_cast<uint16_t>((magnitude - 0x38000000u + 0xfffu + odd) >> 13);
}

float BF16ToF32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t F32ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

namespace {

using Widen = void (*)(const std::byte*, float*, int64_t);
using Narrow = void (*)(const float*, std::byte*, int64_t);

template <float (*kConvert)(uint16_t)>
[[gnu::always_inline]] inline void WidenLoop(const std::byte* source, float* destination,
                                             int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, source + 2 * i, 2);
    destination[i] = kConvert(bits);
  }
}

template <uint16_t (*kConvert)(float)>
[[gnu::always_inline]] inline void NarrowLoop(const float* source, std::byte* destination,
                                              int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = kConvert(source[i]);
    std::memcpy(destination + 2 * i, &bits, 2);
  }
}

void WidenF16Portable(const std::byte* source, float* destination, int64_t count) {
  WidenLoop<F16ToF32>(source, destination, count);
}
void NarrowF16Portable(const float* source, std::byte* destination, int64_t count) {
  NarrowLoop<F32ToF16>(source, destination, count);
}
void WidenBF16Portable(const std::byte* source, float* destination, int64_t count) {
  WidenLoop<BF16ToF32>(source, destination, count);
}
void NarrowBF16Portable(const float* source, std::byte* destination, int64_t count) {
  NarrowLoop<F32ToBF16>(source, destination, count);
}

struct Conversions {
  Widen widen_f16 = WidenF16Portable;
  Narrow narrow_f16 = NarrowF16Portable;
  Widen widen_bf16 = WidenBF16Portable;
  Narrow narrow_bf16 = NarrowBF16Portable;
};

#if defined(__x86_64__)

[[gnu::target("avx2,f16c")]] void WidenF16Avx2(const std::byte* source, float* destination,
                                               int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + 2 * i));
    _mm256_storeu_ps(destination + i, _mm256_cvtph_ps(half));
  }
  WidenF16Portable(source + 2 * i, destination + i, count - i);
}

[[gnu::target("avx2,f16c")]] void NarrowF16Avx2(const float* source, std::byte* destination,
                                                int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(destination + 2 * i), half);
  }
  NarrowF16Portable(source + i, destination + 2 * i, count - i);
}

[[gnu::target("avx2")]] void WidenBF16Avx2(const std::byte* source, float* destination,
                                           int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + 2 * i));
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
    _mm256_storeu_ps(destination + i, _mm256_castsi256_ps(wide));
  }
  WidenBF16Portable(source + 2 * i, destination + i, count - i);
}

[[gnu::target("avx2")]] void NarrowBF16Avx2(const float* source, std::byte* destination,
                                            int64_t count) {
  const __m256i bias = _mm256_set1_epi32(0x7fff);
  const __m256i one = _mm256_set1_epi32(1);
  const __m256i quiet = _mm256_set1_epi32(0x40);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 value = _mm256_loadu_ps(source + i);
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, one);
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, bias), odd), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i result = _mm256_blendv_epi8(rounded, _mm256_or_si256(upper, quiet), nan);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(destination + 2 * i), packed);
  }
  NarrowBF16Portable(source + i, destination + 2 * i, count - i);
}

// Six times as fast. The instruction takes subnormals for zeros, so that those go the other way.
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]] void NarrowBF16Avx512(
    const float* source, std::byte* destination, int64_t count) {
  constexpr int kSubnormal = 0x20;
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m512 low = _mm512_loadu_ps(source + i);
    const __m512 high = _mm512_loadu_ps(source + i + 16);
    const __mmask16 subnormal = _kor_mask16(_mm512_fpclass_ps_mask(low, kSubnormal),
                                            _mm512_fpclass_ps_mask(high, kSubnormal));
    if (subnormal != 0) {
      NarrowBF16Avx2(source + i, destination + 2 * i, 32);
    } else {
      const __m512bh narrow = _mm512_cvtne2ps_pbh(high, low);
      std::memcpy(destination + 2 * i, &narrow, sizeof(narrow));
    }
  }
  NarrowBF16Avx2(source + i, destination + 2 * i, count - i);
}

#endif

Conversions ChooseConversions() {
  Conversions chosen;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {  // every CPU with AVX2 has F16C, which clang 14 cannot name
    chosen = {WidenF16Avx2, NarrowF16Avx2, WidenBF16Avx2, NarrowBF16Avx2};
  }
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    chosen.narrow_bf16 = NarrowBF16Avx512;
  }
#endif
  return chosen;
}

const Conversions& Chosen() {
  static const Conversions chosen = ChooseConversions();
  return chosen;
}

}  // namespace

void ConvertToF32(DType from, const std::byte* source, float* destination, int64_t count) {
  if (count == 0) return;
  switch (from) {
    case DType::kF16:
      return Chosen().widen_f16(source, destination, count);
    case DType::kBF16:
      return Chosen().widen_bf16(source, destination, count);
    default:
      std::memcpy(destination, source, count * sizeof(float));
  }
}

void ConvertFromF32(const float* source, DType to, std::byte* destination, int64_t count) {
  if (count == 0) return;
  switch (to) {
    case DType::kF16:
      return Chosen().narrow_f16(source, destination, count);
    case DType::kBF16:
      return Chosen().narrow_bf16(source, destination, count);
    default:
      std::memcpy(destination, source, count * sizeof(float));
  }
}

namespace {

// Magnitudes order as their bits do, with infinity above all numbers and NaN above that. Signed,
// because they fit, and for 16 bits every x86-64 has a signed maximum of vectors.
template <typename Bits>
[[gnu::always_inline]] inline Bits MaxBits(const std::byte* data, int64_t count) {
  static_assert(std::is_signed_v<Bits>);
  constexpr Bits kMagnitude = std::numeric_limits<Bits>::max();
  Bits max = 0;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof(Bits), sizeof(Bits));
    max = std::max(max, static_cast<Bits>(bits & kMagnitude));
  }
  return max;
}

[[gnu::always_inline]] inline float MaxOfType(DType dtype, const std::byte* data, int64_t count) {
  switch (dtype) {
    case DType::kF16:
      return F16ToF32(MaxBits<int16_t>(data, count));
    case DType::kBF16:
      return BF16ToF32(MaxBits<int16_t>(data, count));
    default:
      return std::bit_cast<float>(MaxBits<int32_t>(data, count));
  }
}

float MaxPortable(DType dtype, const std::byte* data, int64_t count) {
  return MaxOfType(dtype, data, count);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] float MaxAvx2(DType dtype, const std::byte* data, int64_t count) {
  return MaxOfType(dtype, data, count);
}
#endif

}  // namespace

float MaxMagnitude(DType dtype, const std::byte* data, int64_t count) {
#if defined(__x86_64__)
  static const auto max = __builtin_cpu_supports("avx2") ? MaxAvx2 : MaxPortable;
#else
  constexpr auto max = MaxPortable;
#endif
  return max(dtype, data, count);
}

}  // namespace adapterd
