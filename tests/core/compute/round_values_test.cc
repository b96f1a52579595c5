#include "core/compute/round_values.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/core/compute/matrices.h"

namespace adapterd {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// The definition, one element at a time.
RoundingStats Expected(const TestMatrix& weight, const std::vector<float>& values,
                       TestMatrix& merged) {
  RoundingStats stats;
  for (int64_t i = 0; i < weight.view().cols; ++i) {
    const float before = weight.At(0, i);
    merged.Set(0, i, before);
    const float kept = merged.At(0, i);
    merged.Set(0, i, values[i]);
    const float result = merged.At(0, i);
    if (!std::isfinite(result)) {
      ++stats.non_finite;
      stats.newly_non_finite += std::isfinite(before) ? 1 : 0;
    } else if (std::isfinite(before)) {
      const double delta = static_cast<double>(values[i]) - before;
      const double error = static_cast<double>(values[i]) - result;
      stats.max_abs_delta = std::max(stats.max_abs_delta, static_cast<float>(std::abs(delta)));
      stats.max_abs_error = std::max(stats.max_abs_error, static_cast<float>(std::abs(error)));
      stats.sum_squared_deltas += delta * delta;
      stats.sum_squared_errors += error * error;
      const bool same = result == kept && std::signbit(result) == std::signbit(kept);
      stats.zeroed += delta != 0 && same ? 1 : 0;
    }
  }
  return stats;
}

void ExpectRight(const TestMatrix& weight, const std::vector<float>& values, DType merged_type) {
  SCOPED_TRACE(testing::Message() << DTypeName(weight.dtype()) << " to " << DTypeName(merged_type)
                                  << ", " << values.size());
  const int64_t count = weight.view().cols;
  TestMatrix expected(merged_type, 1, count);
  const RoundingStats stats = Expected(weight, values, expected);
  TestMatrix merged(merged_type, 1, count, /*offset=*/1);
  TestMatrix in_place = weight;
  for (TestMatrix* out : {&merged, &in_place}) {
    if (out->dtype() != merged_type) continue;
    const std::byte* from = out == &in_place ? in_place.data() : weight.data();
    const RoundingStats actual =
        RoundValues(weight.dtype(), from, values.data(), merged_type, out->data(), count);
    EXPECT_TRUE(*out == expected);
    EXPECT_EQ(actual.max_abs_delta, stats.max_abs_delta);
    EXPECT_EQ(actual.max_abs_error, stats.max_abs_error);
    EXPECT_NEAR(actual.sum_squared_deltas, stats.sum_squared_deltas,
                1e-12 * stats.sum_squared_deltas);
    EXPECT_NEAR(actual.sum_squared_errors, stats.sum_squared_errors,
                1e-12 * stats.sum_squared_errors);
    EXPECT_EQ(actual.zeroed, stats.zeroed);
    EXPECT_EQ(actual.non_finite, stats.non_finite);
    EXPECT_EQ(actual.newly_non_finite, stats.newly_non_finite);
  }
}

TEST(RoundValuesTest, MatchesTheDefinition) {
  for (const DType from : kFloatTypes) {
    for (const DType to : kFloatTypes) {
      for (const int64_t count : {0, 1, 7, 511, 512, 513, 2000}) {
        const auto weight = TestMatrix::Random(from, 1, count, 1, 1, /*offset=*/1);
        const auto random = TestMatrix::Random(DType::kF32, 1, count, 2);
        std::vector<float> values(count);
        // New values, changes too small for a narrow type, and none.
        for (int64_t i = 0; i < count; ++i) {
          const float small = weight.At(0, i) * (1 + random.At(0, i) * 0x1p-9f);
          values[i] = i % 3 == 0 ? random.At(0, i) : i % 3 == 1 ? small : weight.At(0, i);
        }
        ExpectRight(weight, values, to);
      }
    }
  }
}

TEST(RoundValuesTest, CountsWhatIsNotFinite) {
  const float specials[] = {0.0f, -0.0f, 1, -65504, 65520, 0x1.fep127f, kInf, -kInf, NAN, 0x1p-24f};
  for (const DType from : kFloatTypes) {
    for (const DType to : kFloatTypes) {
      for (const float weight_value : specials) {
        for (const float value : specials) {
          TestMatrix weight = TestMatrix::Random(from, 1, 20, 9);
          weight.Set(0, 11, weight_value);
          std::vector<float> values(20, 0.5f);
          values[11] = value;
          ExpectRight(weight, values, to);
        }
      }
    }
  }
}

}  // namespace
}  // namespace adapterd
