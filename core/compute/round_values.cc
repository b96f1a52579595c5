#include "core/compute/round_values.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// Elements at a time: four arrays of them fit into the first cache.
constexpr int64_t kBatch = 512;

// What became of one element.
struct Change {
  float weight;   // before
  float rounded;  // the weight alone, rounded as the result is
  float value;    // wanted
  float result;   // got
};

void Measure(const Change& change, RoundingStats& stats) {
  const bool was_finite = std::isfinite(change.weight);
  if (!std::isfinite(change.result)) {
    ++stats.non_finite;
    stats.newly_non_finite += was_finite ? 1 : 0;
    return;
  }
  if (!was_finite) return;
  const double delta = double{change.value} - double{change.weight};
  const double error = double{change.value} - double{change.result};
  stats.max_abs_delta = std::max(stats.max_abs_delta, static_cast<float>(std::abs(delta)));
  stats.max_abs_error = std::max(stats.max_abs_error, static_cast<float>(std::abs(error)));
  stats.sum_squared_deltas += delta * delta;
  stats.sum_squared_errors += error * error;
  const bool same =
      std::bit_cast<uint32_t>(change.result) == std::bit_cast<uint32_t>(change.rounded);
  stats.zeroed += delta != 0 && same ? 1 : 0;
}

// destination = source, rounded to `dtype` and widened again; the bytes are written on the way.
void Round(const float* source, DType dtype, std::byte* bytes, float* destination, int64_t count) {
  ConvertFromF32(source, dtype, bytes, count);
  ConvertToF32(dtype, bytes, destination, count);
}

}  // namespace

RoundingStats RoundValues(DType weight_type, const std::byte* weight, const float* values,
                          DType merged_type, std::byte* merged, int64_t count) {
  RoundingStats stats;
  float before[kBatch], rounded[kBatch], result[kBatch];
  std::byte narrow[kBatch * sizeof(float)];
  for (int64_t first = 0; first < count; first += kBatch) {
    const int64_t batch = std::min(kBatch, count - first);
    ConvertToF32(weight_type, weight + first * FloatBytes(weight_type), before, batch);
    Round(before, merged_type, narrow, rounded, batch);
    Round(values + first, merged_type, merged + first * FloatBytes(merged_type), result, batch);
    for (int64_t i = 0; i < batch; ++i) {
      Measure({before[i], rounded[i], values[first + i], result[i]}, stats);
    }
  }
  return stats;
}

}  // namespace adapterd
