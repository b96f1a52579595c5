#include "core/compute/round_values.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// Elements at a time: their arrays fit into the first cache.
constexpr int64_t kBatch = 512;

// What became of a batch of weights.
struct Changes {
  const float* weights;
  const float* rounded;  // the weights alone, rounded as the results are
  const float* values;   // wanted
  const float* results;  // got
  int64_t count;
};

bool Same(float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }

struct Differences {
  double sum_of_squares = 0;
  double largest = 0;
};

// Of a - b. Sums are kept per lane, because numbers must be added in the order of the program: so
// compilers make vector code of it.
Differences Measure(const float* a, const float* b, int64_t count) {
  constexpr int kLanes = 16;
  double squares[kLanes] = {};
  double largest[kLanes] = {};
  int64_t first = 0;
  for (; first + kLanes <= count; first += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double difference = double{a[first + lane]} - double{b[first + lane]};
      squares[lane] += difference * difference;
      largest[lane] = std::max(largest[lane], std::abs(difference));
    }
  }
  for (int lane = 0; first + lane < count; ++lane) {
    const double difference = double{a[first + lane]} - double{b[first + lane]};
    squares[lane] += difference * difference;
    largest[lane] = std::max(largest[lane], std::abs(difference));
  }
  Differences sum;
  for (int lane = 0; lane < kLanes; ++lane) {
    sum.sum_of_squares += squares[lane];
    sum.largest = std::max(sum.largest, largest[lane]);
  }
  return sum;
}

RoundingStats MeasureFinite(const Changes& changes) {
  const Differences deltas = Measure(changes.values, changes.weights, changes.count);
  const Differences errors = Measure(changes.values, changes.results, changes.count);
  int32_t zeroed = 0;
  for (int64_t i = 0; i < changes.count; ++i) {
    const auto changed = static_cast<int32_t>(changes.values[i] != changes.weights[i]);
    zeroed += changed & static_cast<int32_t>(Same(changes.results[i], changes.rounded[i]));
  }
  return {.max_abs_delta = static_cast<float>(deltas.largest),
          .max_abs_error = static_cast<float>(errors.largest),
          .sum_squared_deltas = deltas.sum_of_squares,
          .sum_squared_errors = errors.sum_of_squares,
          .zeroed = zeroed};
}

RoundingStats MeasureOneByOne(const Changes& changes) {
  RoundingStats stats;
  for (int64_t i = 0; i < changes.count; ++i) {
    const bool was_finite = std::isfinite(changes.weights[i]);
    if (!std::isfinite(changes.results[i])) {
      ++stats.non_finite;
      stats.newly_non_finite += was_finite ? 1 : 0;
    } else if (was_finite) {
      stats.Add(MeasureFinite(
          {changes.weights + i, changes.rounded + i, changes.values + i, changes.results + i, 1}));
    }
  }
  return stats;
}

bool AllFinite(const float* values, int64_t count) {
  return std::isfinite(
      MaxMagnitude(DType::kF32, reinterpret_cast<const std::byte*>(values), count));
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
  float weights[kBatch], rounded[kBatch], results[kBatch];
  std::byte narrow[kBatch * sizeof(float)];
  for (int64_t first = 0; first < count; first += kBatch) {
    const int64_t batch = std::min(kBatch, count - first);
    ConvertToF32(weight_type, weight + first * FloatBytes(weight_type), weights, batch);
    Round(weights, merged_type, narrow, rounded, batch);
    Round(values + first, merged_type, merged + first * FloatBytes(merged_type), results, batch);
    const Changes changes = {weights, rounded, values + first, results, batch};
    const bool finite = AllFinite(weights, batch) && AllFinite(results, batch);
    stats.Add(finite ? MeasureFinite(changes) : MeasureOneByOne(changes));
  }
  return stats;
}

}  // namespace adapterd
