#include "core/base/checked_math.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

namespace adapterd {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

TEST(CheckedMathTest, AddStopsAtTheLimits) {
  EXPECT_EQ(CheckedAdd<int64_t>(kMax - 1, 1), kMax);
  EXPECT_EQ(CheckedAdd<int64_t>(kMax, 1), std::nullopt);
  EXPECT_EQ(CheckedAdd<int64_t>(kMin, -1), std::nullopt);
  EXPECT_EQ(CheckedAdd<uint64_t>(~uint64_t{0}, 1), std::nullopt);
}

TEST(CheckedMathTest, MultiplyStopsAtTheLimits) {
  EXPECT_EQ(CheckedMul<int64_t>(int64_t{1} << 31, int64_t{1} << 31), int64_t{1} << 62);
  EXPECT_EQ(CheckedMul<int64_t>(int64_t{1} << 32, int64_t{1} << 31), std::nullopt);
  EXPECT_EQ(CheckedMul<int64_t>(kMin, -1), std::nullopt);
  EXPECT_EQ(CheckedMul<int64_t>(kMax, 0), 0);
}

TEST(CheckedMathTest, AgreesWithWideArithmeticOnEveryPairOfBytes) {
  for (int a = -128; a < 128; ++a) {
    for (int b = -128; b < 128; ++b) {
      const auto fits = [](int value) { return value >= -128 && value < 128; };
      EXPECT_EQ(CheckedAdd(static_cast<int8_t>(a), static_cast<int8_t>(b)).has_value(),
                fits(a + b));
      EXPECT_EQ(CheckedMul(static_cast<int8_t>(a), static_cast<int8_t>(b)).has_value(),
                fits(a * b));
    }
  }
}

TEST(CheckedMathTest, RoundUpAndCeilDiv) {
  EXPECT_EQ(RoundUp(0, 8), 0);
  EXPECT_EQ(RoundUp(1, 8), 8);
  EXPECT_EQ(RoundUp(8, 8), 8);
  EXPECT_EQ(CeilDiv(0, 8), 0);
  EXPECT_EQ(CeilDiv(8, 8), 1);
  EXPECT_EQ(CeilDiv(9, 8), 2);
}

}  // namespace
}  // namespace adapterd
