#include "core/compute/add_rounded.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/tensor/convert.h"

namespace adapterd {
namespace {

constexpr uint32_t kMagnitude = 0x7fffffffu;
constexpr uint32_t kInfinity = 0x7f800000u;

// Elements that are computed in registers before anything is written, so that what the fast way
// cannot do can still be done the slow way. Few enough that F32 sums of squares stay precise.
constexpr int64_t kBatch = 512;
// Squares of magnitudes between these neither vanish nor overflow in F32.
constexpr uint32_t kSmallest = 0x26800000u;  // 2^-50
constexpr uint32_t kLargest = 0x59800000u;   // 2^52

template <DType kType>
using BitsOfType = std::conditional_t<kType == DType::kF32, uint32_t, uint16_t>;

template <DType kType>
float Widen(BitsOfType<kType> bits) {
  if constexpr (kType == DType::kF32) return std::bit_cast<float>(bits);
  if constexpr (kType == DType::kBF16) return BF16ToF32(bits);
  if constexpr (kType == DType::kF16) return F16ToF32(bits);
}

template <DType kType>
BitsOfType<kType> Narrow(float value) {
  if constexpr (kType == DType::kF32) return std::bit_cast<uint32_t>(value);
  if constexpr (kType == DType::kBF16) return F32ToBF16(value);
  if constexpr (kType == DType::kF16) return F32ToF16(value);
}

// Any values, one at a time.
template <DType kType>
RoundingStats AddRoundedScalar(const std::byte* weight, const float* delta, std::byte* merged,
                               int64_t count) {
  using Bits = BitsOfType<kType>;
  RoundingStats stats;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, weight + i * sizeof(Bits), sizeof(Bits));
    const float w = Widen<kType>(bits);
    const Bits result_bits = delta[i] == 0 ? bits : Narrow<kType>(w + delta[i]);
    std::memcpy(merged + i * sizeof(Bits), &result_bits, sizeof(Bits));
    const float result = Widen<kType>(result_bits);
    if (!std::isfinite(result)) {
      ++stats.non_finite;
      stats.newly_non_finite += std::isfinite(w);
      continue;
    }
    const double d = delta[i];
    const double error = double{w} + d - double{result};
    stats.max_abs_delta = std::max(stats.max_abs_delta, std::abs(delta[i]));
    stats.max_abs_error = std::max(stats.max_abs_error, static_cast<float>(std::abs(error)));
    stats.sum_squared_deltas += d * d;
    stats.sum_squared_errors += error * error;
    stats.zeroed += delta[i] != 0 && result_bits == bits;
  }
  return stats;
}

// The same with vectors of kLanes elements, for finite values of ordinary size. The vector types are
// those of GCC and clang; the functions below compile this once for each instruction set.
template <int kLanes>
struct Lanes {
  typedef float Float __attribute__((vector_size(4 * kLanes)));
  typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
  typedef uint32_t Word __attribute__((vector_size(4 * kLanes)));
  typedef uint16_t Half __attribute__((vector_size(2 * kLanes)));
};

// Sums over a batch, one per lane.
template <int kLanes>
struct BatchSums {
  typename Lanes<kLanes>::Float squared_deltas = {};
  typename Lanes<kLanes>::Float squared_errors = {};
  typename Lanes<kLanes>::Word max_delta = {};
  typename Lanes<kLanes>::Word max_error = {};
  typename Lanes<kLanes>::Int zeroed = {};
};

// Vectors go in and out by reference: as values they would need registers that the baseline lacks.

template <int kLanes>
[[gnu::always_inline]] inline void KeepMax(const typename Lanes<kLanes>::Float& value,
                                           typename Lanes<kLanes>::Word& max) {
  // Magnitudes order as their bits do, and NaN is above all.
  using Word = typename Lanes<kLanes>::Word;
  const Word bits = __builtin_bit_cast(Word, value) & kMagnitude;
  max = bits > max ? bits : max;
}

template <DType kType, int kLanes>
[[gnu::always_inline]] inline void WidenLanes(const typename Lanes<kLanes>::Word& bits,
                                              typename Lanes<kLanes>::Float& value) {
  using Word = typename Lanes<kLanes>::Word;
  using Float = typename Lanes<kLanes>::Float;
  if constexpr (kType == DType::kF32) {
    value = __builtin_bit_cast(Float, bits);
  } else if constexpr (kType == DType::kBF16) {
    const Word wide = bits << 16;
    value = __builtin_bit_cast(Float, wide);
  } else {
    // The bits read as a float are too small by 2^112; infinities and NaN then lack exponent bits.
    const Word magnitude = (bits & 0x7fffu) << 13;
    const Float scaled = __builtin_bit_cast(Float, magnitude) * 0x1p112f;
    const Word special = magnitude >= 0x0f800000u ? Word{} + kInfinity : Word{};
    const Word wide = __builtin_bit_cast(Word, scaled) | ((bits & 0x8000u) << 16) | special;
    value = __builtin_bit_cast(Float, wide);
  }
}

// Rounds finite values to bits of kType; magnitudes beyond its range give infinity.
template <DType kType, int kLanes>
[[gnu::always_inline]] inline void NarrowLanes(const typename Lanes<kLanes>::Float& value,
                                               typename Lanes<kLanes>::Word& narrow) {
  using Word = typename Lanes<kLanes>::Word;
  using Float = typename Lanes<kLanes>::Float;
  const Word bits = __builtin_bit_cast(Word, value);
  if constexpr (kType == DType::kF32) {
    narrow = bits;
  } else if constexpr (kType == DType::kBF16) {
    narrow = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  } else {  // as F32ToF16, with both ways computed
    const Word magnitude = bits & kMagnitude;
    const Float shifted = __builtin_bit_cast(Float, magnitude) + 0.5f;
    const Word subnormal = __builtin_bit_cast(Word, shifted) - 0x3f000000u;
    const Word rounded = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const Word normal = magnitude >= 0x477ff000u ? Word{} + 0x7c00u : rounded;
    narrow = (magnitude < 0x38800000u ? subnormal : normal) | ((bits >> 16) & 0x8000u);
  }
}

template <DType kType, int kLanes>
[[gnu::always_inline]] inline void LoadLanes(const std::byte* from,
                                             typename Lanes<kLanes>::Word& bits) {
  if constexpr (kType == DType::kF32) {
    std::memcpy(&bits, from, sizeof(bits));
  } else {
    typename Lanes<kLanes>::Half half;
    std::memcpy(&half, from, sizeof(half));
    bits = __builtin_convertvector(half, typename Lanes<kLanes>::Word);
  }
}

template <DType kType, int kLanes>
[[gnu::always_inline]] inline void StoreLanes(const typename Lanes<kLanes>::Word& bits,
                                              std::byte* to) {
  if constexpr (kType == DType::kF32) {
    std::memcpy(to, &bits, sizeof(bits));
  } else {
    const auto half = __builtin_convertvector(bits, typename Lanes<kLanes>::Half);
    std::memcpy(to, &half, sizeof(half));
  }
}

template <DType kType, int kLanes>
[[gnu::always_inline]] inline void AddLanes(const std::byte* weight, const float* delta,
                                            std::byte* merged, BatchSums<kLanes>& sums) {
  using Float = typename Lanes<kLanes>::Float;
  using Word = typename Lanes<kLanes>::Word;
  Word weight_bits, result_bits;
  Float w, d, result;
  LoadLanes<kType, kLanes>(weight, weight_bits);
  WidenLanes<kType, kLanes>(weight_bits, w);
  std::memcpy(&d, delta, sizeof(d));
  const auto is_zero = d == 0.0f;
  const Float sum = is_zero ? w : w + d;
  NarrowLanes<kType, kLanes>(sum, result_bits);
  StoreLanes<kType, kLanes>(result_bits, merged);
  WidenLanes<kType, kLanes>(result_bits, result);
  // Knuth's TwoSum: what the addition lost, exactly. Then what the rounding lost, exactly. Infinite
  // or NaN when the result is.
  const Float added = sum - w;
  const Float lost = (w - (sum - added)) + (d - added);
  const Float error = lost + (sum - result);
  sums.squared_deltas += d * d;
  sums.squared_errors += error * error;
  KeepMax<kLanes>(d, sums.max_delta);
  KeepMax<kLanes>(error, sums.max_error);
  sums.zeroed -= (result_bits == weight_bits) & ~is_zero;
}

template <typename Vector, typename Fold>
auto FoldLanes(const Vector& vector, Fold fold) {
  auto folded = vector[0];
  for (size_t i = 1; i < sizeof(vector) / sizeof(vector[0]); ++i) folded = fold(folded, vector[i]);
  return folded;
}

bool IsOrdinary(uint32_t max) { return max == 0 || (max >= kSmallest && max <= kLargest); }

// False, with `stats` as they were, when the sums show a value that the fast way cannot do.
template <int kLanes>
[[gnu::always_inline]] inline bool AddBatch(const BatchSums<kLanes>& sums, RoundingStats& stats) {
  const auto larger = [](uint32_t a, uint32_t b) { return std::max(a, b); };
  const auto plus = [](auto a, auto b) { return a + b; };
  const uint32_t max_delta = FoldLanes(sums.max_delta, larger);
  const uint32_t max_error = FoldLanes(sums.max_error, larger);
  if (!IsOrdinary(max_delta) || !IsOrdinary(max_error)) return false;
  stats.max_abs_delta = std::max(stats.max_abs_delta, std::bit_cast<float>(max_delta));
  stats.max_abs_error = std::max(stats.max_abs_error, std::bit_cast<float>(max_error));
  stats.sum_squared_deltas += FoldLanes(sums.squared_deltas, plus);
  stats.sum_squared_errors += FoldLanes(sums.squared_errors, plus);
  stats.zeroed += FoldLanes(sums.zeroed, plus);
  return true;
}

template <DType kType, int kLanes>
[[gnu::always_inline]] inline RoundingStats AddRoundedLanes(const std::byte* weight,
                                                            const float* delta, std::byte* merged,
                                                            int64_t count) {
  constexpr int64_t kBytes = sizeof(BitsOfType<kType>);
  RoundingStats stats;
  for (int64_t first = 0; first < count; first += kBatch) {
    const std::byte* from = weight + first * kBytes;
    std::byte* to = merged + first * kBytes;
    const int64_t batch = std::min(kBatch, count - first);
    const int64_t whole = batch / kLanes * kLanes;
    std::byte results[kBatch * kBytes];
    BatchSums<kLanes> sums;
    for (int64_t i = 0; i < whole; i += kLanes) {
      AddLanes<kType, kLanes>(from + i * kBytes, delta + first + i, results + i * kBytes, sums);
    }
    int64_t done = 0;
    if (AddBatch<kLanes>(sums, stats)) {
      std::memcpy(to, results, whole * kBytes);
      done = whole;
    }
    if (done == batch) continue;
    stats.Add(AddRoundedScalar<kType>(from + done * kBytes, delta + first + done,
                                      to + done * kBytes, batch - done));
  }
  return stats;
}

using AddFunction = RoundingStats (*)(DType, const std::byte*, const float*, std::byte*, int64_t);

template <int kLanes>
[[gnu::always_inline]] inline RoundingStats AddOfType(DType dtype, const std::byte* weight,
                                                      const float* delta, std::byte* merged,
                                                      int64_t count) {
  switch (dtype) {
    case DType::kBF16:
      return AddRoundedLanes<DType::kBF16, kLanes>(weight, delta, merged, count);
    case DType::kF16:
      return AddRoundedLanes<DType::kF16, kLanes>(weight, delta, merged, count);
    default:
      return AddRoundedLanes<DType::kF32, kLanes>(weight, delta, merged, count);
  }
}

RoundingStats AddPortable(DType dtype, const std::byte* weight, const float* delta,
                          std::byte* merged, int64_t count) {
  return AddOfType<4>(dtype, weight, delta, merged, count);
}

#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] RoundingStats AddAvx2(DType dtype, const std::byte* weight,
                                                  const float* delta, std::byte* merged,
                                                  int64_t count) {
  return AddOfType<8>(dtype, weight, delta, merged, count);
}

[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] RoundingStats AddAvx512(
    DType dtype, const std::byte* weight, const float* delta, std::byte* merged, int64_t count) {
  return AddOfType<16>(dtype, weight, delta, merged, count);
}
#endif

AddFunction ChooseAdd() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return AddAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AddAvx2;
#endif
  return AddPortable;
}

}  // namespace

void RoundingStats::Add(const RoundingStats& other) {
  max_abs_delta = std::max(max_abs_delta, other.max_abs_delta);
  max_abs_error = std::max(max_abs_error, other.max_abs_error);
  sum_squared_deltas += other.sum_squared_deltas;
  sum_squared_errors += other.sum_squared_errors;
  zeroed += other.zeroed;
  non_finite += other.non_finite;
  newly_non_finite += other.newly_non_finite;
}

RoundingStats AddRounded(DType dtype, const std::byte* weight, const float* delta,
                         std::byte* merged, int64_t count) {
  static const AddFunction kAdd = ChooseAdd();
  return kAdd(dtype, weight, delta, merged, count);
}

}  // namespace adapterd
