#include "bench/measure.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/testing/status_matchers.h"

namespace adapterd::bench {
namespace {

constexpr MeasureOptions kFewRounds{absl::ZeroDuration(), 3};

TEST(MeasureTest, PercentileIsOneOfTheValues) {
  const std::vector<double> values = {1, 2, 3, 4, 100};
  EXPECT_EQ(Percentile(values, 0), 1);
  EXPECT_EQ(Percentile(values, 0.5), 3);
  EXPECT_EQ(Percentile(values, 1), 100);
}

TEST(MeasureTest, TimesAddUpAndDivide) {
  Timing echo = Timing::Of(40);
  echo.repetitions = 9;
  Timing kernel = Timing::Of(10);
  kernel.repetitions = 5;
  kernel.p99_us = 30;
  const Timing both = echo + kernel;
  EXPECT_EQ(both.median_us, 50);
  EXPECT_EQ(both.repetitions, 5);
  EXPECT_FALSE(both.p99_us.has_value());
  EXPECT_EQ((kernel / 2).median_us, 5);
  EXPECT_EQ((kernel / 2).p99_us, 15);
}

TEST(MeasureTest, EverybodyTakesTurns) {
  std::vector<char> order;
  const auto a = [&] {
    order.push_back('a');
    return absl::OkStatus();
  };
  const auto b = [&] {
    order.push_back('b');
    return absl::OkStatus();
  };
  const Contestant contestants[] = {{a}, {b}};
  const absl::StatusOr<std::vector<Timing>> timings = MeasureInTurns(kFewRounds, contestants);
  ASSERT_THAT(timings, IsOk());
  ASSERT_EQ(timings->size(), 2);
  int turns = 1;
  for (size_t i = 1; i < order.size(); ++i) turns += order[i] != order[i - 1];
  EXPECT_EQ(turns, 2 * (1 + kFewRounds.min_rounds));  // the warm-up is a round, too
}

TEST(MeasureTest, AnErrorEndsIt) {
  const auto good = [] { return absl::OkStatus(); };
  const auto bad = [] { return absl::InternalError("broken"); };
  EXPECT_THAT(MeasureAlternating(kFewRounds, good, bad), StatusIs(absl::StatusCode::kInternal));
}

}  // namespace
}  // namespace adapterd::bench
