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
constexpr int kLanes = 32;  // enough for two vectors of the widest kind in flight
// Squares of magnitudes between these neither vanish nor overflow in F32.
constexpr uint32_t kSmallest = 0x26800000u;  // 2^-50
constexpr uint32_t kLargest = 0x59800000u;   // 2^52

template <DType kType>
using BitsOf = std::conditional_t<kType == DType::kF32, uint32_t, uint16_t>;

// A conditional whose sides are always computed: compilers turn ?: into branches again when a side
// is floating-point, which might trap.
[[gnu::always_inline]] inline uint32_t Select(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = -static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}
[[gnu::always_inline]] inline float Select(bool condition, float yes, float no) {
  return std::bit_cast<float>(
      Select(condition, std::bit_cast<uint32_t>(yes), std::bit_cast<uint32_t>(no)));
}

// The conversions of core/tensor once more, without branches or calls: loops that contain them turn
// into vector code.

template <DType kType>
[[gnu::always_inline]] inline float Widen(BitsOf<kType> bits) {
  const uint32_t wide = bits;
  if constexpr (kType == DType::kF32) {
    return std::bit_cast<float>(wide);
  } else if constexpr (kType == DType::kBF16) {
    return std::bit_cast<float>(wide << 16);
  } else {
    // The bits read as binary32 are too small by 2^112; infinities and NaN then lack exponent bits.
    const uint32_t magnitude = (wide & 0x7fffu) << 13;
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
    const uint32_t special = Select(magnitude >= 0x0f800000u, kInfinity, 0u);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | special | (wide & 0x8000u) << 16);
  }
}

// Of finite values; magnitudes beyond the type's range give infinity.
template <DType kType>
[[gnu::always_inline]] inline BitsOf<kType> NarrowFinite(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if constexpr (kType == DType::kF32) {
    return bits;
  } else if constexpr (kType == DType::kBF16) {
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  } else {
    const uint32_t magnitude = bits & kMagnitude;
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;  // see F32ToF16
    const uint32_t subnormal = std::bit_cast<uint32_t>(shifted) - 0x3f000000u;
    const uint32_t rounded = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t normal = Select(magnitude >= 0x477ff000u, 0x7c00u, rounded);
    const uint32_t narrow = Select(magnitude < 0x38800000u, subnormal, normal);
    return static_cast<uint16_t>(narrow | ((bits >> 16) & 0x8000u));
  }
}

template <DType kType>
BitsOf<kType> Narrow(float value) {
  if constexpr (kType == DType::kF32) return std::bit_cast<uint32_t>(value);
  if constexpr (kType == DType::kBF16) return F32ToBF16(value);
  if constexpr (kType == DType::kF16) return F32ToF16(value);
}

// Any values, one at a time.
template <DType kType>
RoundingStats AddRoundedScalar(const std::byte* weight, const float* delta, std::byte* merged,
                               int64_t count) {
  using Bits = BitsOf<kType>;
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

// Sums over a batch, one per lane, because sums of floats must keep their order. Magnitudes order as
// their bits do, with NaN above all.
struct BatchSums {
  float squared_deltas[kLanes] = {};
  float squared_errors[kLanes] = {};
  uint32_t max_delta[kLanes] = {};
  uint32_t max_error[kLanes] = {};
  int32_t zeroed[kLanes] = {};
};

// kLanes finite elements of ordinary size, in registers.
template <DType kType>
[[gnu::always_inline]] inline void AddLanes(const std::byte* __restrict weight,
                                            const float* __restrict delta,
                                            std::byte* __restrict merged,
                                            BatchSums& __restrict sums) {
  using Bits = BitsOf<kType>;
  typedef Bits Unaligned __attribute__((aligned(1), may_alias));
  const auto* from = reinterpret_cast<const Unaligned*>(weight);
  auto* to = reinterpret_cast<Unaligned*>(merged);
  for (int i = 0; i < kLanes; ++i) {
    const Bits bits = from[i];
    const float w = Widen<kType>(bits);
    const float d = delta[i];
    const float sum = Select(d == 0, w, w + d);  // -0 + 0 would be 0
    const Bits result_bits = NarrowFinite<kType>(sum);
    to[i] = result_bits;
    const float result = Widen<kType>(result_bits);
    // Knuth's TwoSum: what the addition lost, exactly. Then what the rounding lost, exactly. Infinite
    // or NaN when the result is.
    const float added = sum - w;
    const float lost = (w - (sum - added)) + (d - added);
    const float error = lost + (sum - result);
    sums.squared_deltas[i] += d * d;
    sums.squared_errors[i] += error * error;
    sums.max_delta[i] = std::max(sums.max_delta[i], std::bit_cast<uint32_t>(d) & kMagnitude);
    sums.max_error[i] = std::max(sums.max_error[i], std::bit_cast<uint32_t>(error) & kMagnitude);
    sums.zeroed[i] += static_cast<int32_t>(result_bits == bits) & static_cast<int32_t>(d != 0);
  }
}

bool IsOrdinary(uint32_t max) { return max == 0 || (max >= kSmallest && max <= kLargest); }

// False, with `stats` as they were, when the sums show a value that the fast way cannot do.
bool AddBatch(const BatchSums& sums, RoundingStats& stats) {
  const uint32_t max_delta = *std::max_element(sums.max_delta, sums.max_delta + kLanes);
  const uint32_t max_error = *std::max_element(sums.max_error, sums.max_error + kLanes);
  if (!IsOrdinary(max_delta) || !IsOrdinary(max_error)) return false;
  stats.max_abs_delta = std::max(stats.max_abs_delta, std::bit_cast<float>(max_delta));
  stats.max_abs_error = std::max(stats.max_abs_error, std::bit_cast<float>(max_error));
  for (int i = 0; i < kLanes; ++i) {
    stats.sum_squared_deltas += sums.squared_deltas[i];
    stats.sum_squared_errors += sums.squared_errors[i];
    stats.zeroed += sums.zeroed[i];
  }
  return true;
}

template <DType kType>
[[gnu::always_inline]] inline RoundingStats AddRoundedLanes(const std::byte* weight,
                                                            const float* delta, std::byte* merged,
                                                            int64_t count) {
  constexpr int64_t kBytes = sizeof(BitsOf<kType>);
  RoundingStats stats;
  for (int64_t first = 0; first < count; first += kBatch) {
    const std::byte* from = weight + first * kBytes;
    std::byte* to = merged + first * kBytes;
    const int64_t batch = std::min(kBatch, count - first);
    const int64_t whole = batch / kLanes * kLanes;
    alignas(64) std::byte results[kBatch * kBytes];
    BatchSums sums;
    for (int64_t i = 0; i < whole; i += kLanes) {
      AddLanes<kType>(from + i * kBytes, delta + first + i, results + i * kBytes, sums);
    }
    int64_t done = 0;
    if (AddBatch(sums, stats)) {
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

[[gnu::always_inline]] inline RoundingStats AddOfType(DType dtype, const std::byte* weight,
                                                      const float* delta, std::byte* merged,
                                                      int64_t count) {
  switch (dtype) {
    case DType::kBF16:
      return AddRoundedLanes<DType::kBF16>(weight, delta, merged, count);
    case DType::kF16:
      return AddRoundedLanes<DType::kF16>(weight, delta, merged, count);
    default:
      return AddRoundedLanes<DType::kF32>(weight, delta, merged, count);
  }
}

RoundingStats AddPortable(DType dtype, const std::byte* weight, const float* delta,
                          std::byte* merged, int64_t count) {
  return AddOfType(dtype, weight, delta, merged, count);
}

#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] RoundingStats AddAvx2(DType dtype, const std::byte* weight,
                                                  const float* delta, std::byte* merged,
                                                  int64_t count) {
  return AddOfType(dtype, weight, delta, merged, count);
}

[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]] RoundingStats AddAvx512(
    DType dtype, const std::byte* weight, const float* delta, std::byte* merged, int64_t count) {
  return AddOfType(dtype, weight, delta, merged, count);
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
