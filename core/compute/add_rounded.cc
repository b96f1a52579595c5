#include "core/compute/add_rounded.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/tensor/aligned_buffer.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// Elements that are computed before any is written: values that the fast way cannot do are noticed
// afterwards, and the batch is done again one by one. Few enough for F32 sums of squares to stay
// precise and for the first cache to hold them.
constexpr int64_t kBatch = 512;
// Sums are kept per lane, because floats must be added in the order of the program.
constexpr int kLanes = 16;
// Squares of magnitudes between these neither vanish nor overflow in F32.
constexpr uint32_t kSmallestBits = 0x26800000u;  // 2^-50
constexpr uint32_t kLargestBits = 0x59800000u;   // 2^52

template <DType kType>
using BitsOf = std::conditional_t<kType == DType::kF32, uint32_t, uint16_t>;

template <DType kType>
float Widen(BitsOf<kType> bits) {
  if constexpr (kType == DType::kF32) return std::bit_cast<float>(bits);
  if constexpr (kType == DType::kF16) return F16ToF32(bits);
  if constexpr (kType == DType::kBF16) return BF16ToF32(bits);
}

template <DType kType>
BitsOf<kType> Narrow(float value) {
  if constexpr (kType == DType::kF32) return std::bit_cast<uint32_t>(value);
  if constexpr (kType == DType::kF16) return F32ToF16(value);
  if constexpr (kType == DType::kBF16) return F32ToBF16(value);
}

// weight + delta - result. Knuth's TwoSum finds what the addition lost, exactly, however far apart
// the two are; it does no harm when nothing was lost.
double SumMinusResult(double weight, double delta, double result) {
  const double sum = weight + delta;
  const double added = sum - weight;
  const double lost = (weight - (sum - added)) + (delta - added);
  return lost + (sum - result);
}

// Any values, one at a time.
template <DType kType>
RoundingStats AddOneByOne(const std::byte* weight, const float* delta, std::byte* merged,
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
      stats.newly_non_finite += std::isfinite(w) ? 1 : 0;
      continue;
    }
    const double d = delta[i];
    const double error = SumMinusResult(w, d, result);
    stats.max_abs_delta = std::max(stats.max_abs_delta, std::abs(delta[i]));
    stats.max_abs_error = std::max(stats.max_abs_error, static_cast<float>(std::abs(error)));
    stats.sum_squared_deltas += d * d;
    stats.sum_squared_errors += error * error;
    stats.zeroed += delta[i] != 0 && result_bits == bits ? 1 : 0;
  }
  return stats;
}

// What follows is for finite values of ordinary size. Loops over lanes have no branches and no
// calls, so that compilers turn them into vector code, once for each instruction set below.

// Magnitudes order as their bits do, with infinity and NaN above all.
struct LaneSums {
  float squared_deltas[kLanes] = {};
  float squared_errors[kLanes] = {};
  uint32_t max_delta[kLanes] = {};
  uint32_t max_error[kLanes] = {};
  int32_t zeroed[kLanes] = {};
};

[[gnu::always_inline]] inline uint32_t MagnitudeBits(float value) {
  return std::bit_cast<uint32_t>(value) & 0x7fffffffu;
}

// weight + delta, except that -0 + 0 stays -0. Not ?:, which would become a branch: an addition
// might trap.
[[gnu::always_inline]] inline float Sum(float weight, float delta) {
  const uint32_t mask = -static_cast<uint32_t>(delta == 0);
  return std::bit_cast<float>((std::bit_cast<uint32_t>(weight) & mask) |
                              (std::bit_cast<uint32_t>(weight + delta) & ~mask));
}

[[gnu::always_inline]] inline void Measure(float weight, float delta, float sum, float result,
                                           int lane, LaneSums& sums) {
  // SumMinusResult in F32, where no more than this is lost. Infinite or NaN when the result is.
  const float added = sum - weight;
  const float lost = (weight - (sum - added)) + (delta - added);
  const float error = lost + (sum - result);
  sums.squared_deltas[lane] += delta * delta;
  sums.squared_errors[lane] += error * error;
  sums.max_delta[lane] = std::max(sums.max_delta[lane], MagnitudeBits(delta));
  sums.max_error[lane] = std::max(sums.max_error[lane], MagnitudeBits(error));
  const bool same = std::bit_cast<uint32_t>(result) == std::bit_cast<uint32_t>(weight);
  sums.zeroed[lane] += static_cast<int32_t>(same) & static_cast<int32_t>(delta != 0);
}

// `count` is a multiple of kLanes.
template <DType kType>
[[gnu::always_inline]] inline void AddLanes(const std::byte* __restrict weight,
                                            const float* __restrict delta,
                                            std::byte* __restrict merged, int64_t count,
                                            LaneSums& __restrict sums) {
  typedef BitsOf<kType> Bits __attribute__((aligned(1), may_alias));
  // Not auto, which would forget the alignment.
  const Bits* from = reinterpret_cast<const Bits*>(weight);
  Bits* to = reinterpret_cast<Bits*>(merged);
  for (int64_t first = 0; first < count; first += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t i = first + lane;
      if constexpr (kType == DType::kF32) {
        const float w = std::bit_cast<float>(static_cast<uint32_t>(from[i]));
        const float sum = Sum(w, delta[i]);
        to[i] = std::bit_cast<uint32_t>(sum);
        Measure(w, delta[i], sum, sum, lane, sums);
      } else {
        static_assert(kType == DType::kBF16);
        const float w = std::bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
        const float sum = Sum(w, delta[i]);
        const uint32_t bits = std::bit_cast<uint32_t>(sum);
        const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // see F32ToBF16
        to[i] = static_cast<uint16_t>(rounded);
        Measure(w, delta[i], sum, std::bit_cast<float>(rounded << 16), lane, sums);
      }
    }
  }
}

// F16 goes through core/tensor, which has the CPU's conversions.
template <>
[[gnu::always_inline]] inline void AddLanes<DType::kF16>(const std::byte* __restrict weight,
                                                         const float* __restrict delta,
                                                         std::byte* __restrict merged,
                                                         int64_t count, LaneSums& __restrict sums) {
  alignas(kBufferAlignment) float wide[kBatch], sum[kBatch], result[kBatch];
  ConvertToF32(DType::kF16, weight, wide, count);
  for (int64_t i = 0; i < count; ++i) sum[i] = Sum(wide[i], delta[i]);
  ConvertFromF32(sum, DType::kF16, merged, count);
  ConvertToF32(DType::kF16, merged, result, count);
  for (int64_t first = 0; first < count; first += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t i = first + lane;
      Measure(wide[i], delta[i], sum[i], result[i], lane, sums);
    }
  }
}

bool IsOrdinary(uint32_t max) { return max == 0 || (max >= kSmallestBits && max <= kLargestBits); }

// Sums of many batches, still per lane: adding up lanes costs as much as a batch of vector code.
struct LaneTotals {
  double squared_deltas[kLanes] = {};
  double squared_errors[kLanes] = {};
  int64_t zeroed[kLanes] = {};
  uint32_t max_delta = 0;
  uint32_t max_error = 0;

  RoundingStats Sum() const {
    RoundingStats stats;
    stats.max_abs_delta = std::bit_cast<float>(max_delta);
    stats.max_abs_error = std::bit_cast<float>(max_error);
    for (int lane = 0; lane < kLanes; ++lane) {
      stats.sum_squared_deltas += squared_deltas[lane];
      stats.sum_squared_errors += squared_errors[lane];
      stats.zeroed += zeroed[lane];
    }
    return stats;
  }
};

// False, with `totals` as they were, when the sums show a value that is not ordinary.
[[gnu::always_inline]] inline bool AddSums(const LaneSums& sums, LaneTotals& totals) {
  uint32_t max_delta = 0;
  uint32_t max_error = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    max_delta = std::max(max_delta, sums.max_delta[lane]);
    max_error = std::max(max_error, sums.max_error[lane]);
  }
  if (!IsOrdinary(max_delta) || !IsOrdinary(max_error)) return false;
  totals.max_delta = std::max(totals.max_delta, max_delta);
  totals.max_error = std::max(totals.max_error, max_error);
  for (int lane = 0; lane < kLanes; ++lane) {
    totals.squared_deltas[lane] += sums.squared_deltas[lane];
    totals.squared_errors[lane] += sums.squared_errors[lane];
    totals.zeroed[lane] += sums.zeroed[lane];
  }
  return true;
}

template <DType kType>
[[gnu::always_inline]] inline RoundingStats AddBatches(const std::byte* weight, const float* delta,
                                                       std::byte* merged, int64_t count) {
  constexpr int64_t kBytes = sizeof(BitsOf<kType>);
  LaneTotals totals;
  RoundingStats others;
  for (int64_t first = 0; first < count; first += kBatch) {
    const std::byte* from = weight + first * kBytes;
    std::byte* to = merged + first * kBytes;
    const int64_t batch = std::min(kBatch, count - first);
    int64_t done = batch / kLanes * kLanes;
    alignas(kBufferAlignment) std::byte results[kBatch * kBytes];
    LaneSums sums;
    AddLanes<kType>(from, delta + first, results, done, sums);
    if (AddSums(sums, totals)) {
      std::memcpy(to, results, done * kBytes);
    } else {
      done = 0;
    }
    if (done == batch) continue;
    others.Add(AddOneByOne<kType>(from + done * kBytes, delta + first + done, to + done * kBytes,
                                  batch - done));
  }
  others.Add(totals.Sum());
  return others;
}

[[gnu::always_inline]] inline RoundingStats AddOfType(DType dtype, const std::byte* weight,
                                                      const float* delta, std::byte* merged,
                                                      int64_t count) {
  switch (dtype) {
    case DType::kBF16:
      return AddBatches<DType::kBF16>(weight, delta, merged, count);
    case DType::kF16:
      return AddBatches<DType::kF16>(weight, delta, merged, count);
    default:
      return AddBatches<DType::kF32>(weight, delta, merged, count);
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

std::vector<AddRoundedVariant> AddRoundedVariants() {
  std::vector<AddRoundedVariant> variants;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    variants.push_back({"avx512", AddAvx512});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    variants.push_back({"avx2", AddAvx2});
  }
#endif
  variants.push_back({"portable", AddPortable});
  return variants;
}

RoundingStats AddRounded(DType dtype, const std::byte* weight, const float* delta,
                         std::byte* merged, int64_t count) {
  static const auto add = AddRoundedVariants().front().add;
  return add(dtype, weight, delta, merged, count);
}

}  // namespace adapterd
