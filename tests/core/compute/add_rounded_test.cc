// The elementwise half of a merge, in every form that this CPU runs.
#include "core/compute/add_rounded.h"

#include <gtest/gtest.h>

#include <bit>
#include <limits>

#include "tests/core/compute/matrices.h"

namespace adapterd {
namespace {

uint32_t BitsAt(const TestMatrix& matrix, int64_t col) {
  uint32_t bits = 0;
  const int64_t width = FloatBytes(matrix.dtype());
  std::memcpy(&bits, matrix.data() + col * width, width);
  return bits;
}

// The definition, element by element, in double.
RoundingStats Expected(const TestMatrix& weight, const std::vector<float>& delta,
                       TestMatrix& merged) {
  RoundingStats stats;
  for (int64_t i = 0; i < weight.view().cols; ++i) {
    merged.Set(0, i, weight.At(0, i) + delta[i]);
    if (delta[i] == 0) {
      const int64_t width = FloatBytes(weight.dtype());
      std::memcpy(merged.data() + i * width, weight.data() + i * width, width);
    }
    const double result = merged.At(0, i);
    if (!std::isfinite(result)) {
      ++stats.non_finite;
      stats.newly_non_finite += std::isfinite(weight.At(0, i)) ? 1 : 0;
      continue;
    }
    // Exact: in one of the two orders the first difference is, whichever is the larger.
    const double w = weight.At(0, i);
    const double d = delta[i];
    const double error = std::abs(w) > std::abs(d) ? (w - result) + d : (d - result) + w;
    stats.max_abs_delta = std::max(stats.max_abs_delta, std::abs(delta[i]));
    stats.max_abs_error = std::max(stats.max_abs_error, static_cast<float>(std::abs(error)));
    stats.sum_squared_deltas += double{delta[i]} * double{delta[i]};
    stats.sum_squared_errors += error * error;
    stats.zeroed += delta[i] != 0 && BitsAt(merged, i) == BitsAt(weight, i) ? 1 : 0;
  }
  return stats;
}

class AddRoundedTest : public ::testing::TestWithParam<DType> {
 protected:
  void ExpectRight(const TestMatrix& weight, const std::vector<float>& delta) {
    TestMatrix expected(weight.dtype(), 1, weight.view().cols);
    const RoundingStats stats = Expected(weight, delta, expected);
    for (const AddRoundedVariant& variant : AddRoundedVariants()) {
      SCOPED_TRACE(variant.name);
      TestMatrix merged(weight.dtype(), 1, weight.view().cols, /*offset=*/1);
      TestMatrix in_place = weight;
      for (TestMatrix* out : {&merged, &in_place}) {
        const std::byte* from = out == &in_place ? in_place.data() : weight.data();
        const RoundingStats actual =
            variant.add(weight.dtype(), from, delta.data(), out->data(), weight.view().cols);
        EXPECT_TRUE(*out == expected);
        EXPECT_EQ(actual.max_abs_delta, stats.max_abs_delta);
        EXPECT_EQ(actual.max_abs_error, stats.max_abs_error);
        // What the header promises.
        EXPECT_NEAR(actual.sum_squared_deltas, stats.sum_squared_deltas,
                    1e-5 * stats.sum_squared_deltas);
        EXPECT_NEAR(actual.sum_squared_errors, stats.sum_squared_errors,
                    1e-5 * stats.sum_squared_errors);
        EXPECT_EQ(actual.zeroed, stats.zeroed);
        EXPECT_EQ(actual.non_finite, stats.non_finite);
        EXPECT_EQ(actual.newly_non_finite, stats.newly_non_finite);
      }
    }
  }

  static std::vector<float> Deltas(int64_t count, uint32_t seed, float deviation) {
    const auto matrix = TestMatrix::Random(DType::kF32, 1, count, seed, deviation);
    std::vector<float> values(count);
    for (int64_t i = 0; i < count; ++i) values[i] = matrix.At(0, i);
    return values;
  }
};

INSTANTIATE_TEST_SUITE_P(Types, AddRoundedTest, ::testing::ValuesIn(kFloatTypes),
                         [](const auto& type) { return std::string(DTypeName(type.param)); });

TEST_P(AddRoundedTest, MatchesTheDefinitionAtEveryLength) {
  for (int64_t count = 0; count < 70; ++count) {
    ExpectRight(TestMatrix::Random(GetParam(), 1, count, 1), Deltas(count, 2, 0.01f));
  }
  for (const int64_t count : {511, 512, 513, 5000}) {
    ExpectRight(TestMatrix::Random(GetParam(), 1, count, 3), Deltas(count, 4, 0.01f));
  }
}

TEST_P(AddRoundedTest, MatchesTheDefinitionAtEverySize) {
  // Deltas far below, around and far above the weights, and too small or large to be squared in
  // F32.
  for (int exponent = -140; exponent <= 120; exponent += 4) {
    const float deviation = std::ldexp(1.0f, exponent);
    ExpectRight(TestMatrix::Random(GetParam(), 1, 700, 5), Deltas(700, 6, deviation));
    ExpectRight(TestMatrix::Random(GetParam(), 1, 700, 7, deviation), Deltas(700, 8, deviation));
  }
}

TEST_P(AddRoundedTest, KeepsEveryWeightWhoseDeltaIsZero) {
  // All patterns of 16 bits: -0, subnormals, infinities and all NaN among them.
  TestMatrix weight(GetParam(), 1, 1 << 16);
  for (uint32_t bits = 0; bits < 1 << 16; ++bits) {
    if (GetParam() == DType::kF32) {
      weight.Set(0, bits, std::bit_cast<float>(bits << 16 | 0x1234u));
    } else {
      weight.SetBits(0, bits, static_cast<uint16_t>(bits));
    }
  }
  for (const float zero : {0.0f, -0.0f}) {
    std::vector<float> delta(1 << 16, zero);
    ExpectRight(weight, delta);
    // The same among deltas that are not zero.
    for (size_t i = 0; i < delta.size(); i += 3) delta[i] = 0.5f;
    ExpectRight(weight, delta);
  }
}

TEST_P(AddRoundedTest, CountsWhatIsNotFinite) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float largest = GetParam() == DType::kF16 ? 65504.0f : 0x1.fep127f;
  const float values[] = {0, -0.0f, 1, -1, largest, -largest, kInf, -kInf, NAN, 0x1p-24f};
  // Every pair of values, among ordinary ones.
  for (const float w : values) {
    for (const float d : values) {
      for (const int64_t at : {0, 17, 599}) {
        TestMatrix weight = TestMatrix::Random(GetParam(), 1, 600, 9);
        std::vector<float> delta = Deltas(600, 10, 0.01f);
        weight.Set(0, at, w);
        delta[at] = d;
        if (std::isnan(w) && std::isnan(d)) continue;  // either payload is right
        ExpectRight(weight, delta);
      }
    }
  }
}

}  // namespace
}  // namespace adapterd
