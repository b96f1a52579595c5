#include "core/compose/magnitude_cut.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

MagnitudeCut CutOf(const std::vector<float>& values, int64_t kept, size_t piece) {
  int passes = 0;
  absl::StatusOr<MagnitudeCut> cut = FindMagnitudeCut(
      [&](absl::FunctionRef<void(const float*, int64_t)> take) {
        ++passes;
        for (size_t first = 0; first < values.size(); first += piece) {
          const auto count = static_cast<int64_t>(std::min(piece, values.size() - first));
          take(values.data() + first, count);
        }
        return absl::OkStatus();
      },
      kept);
  EXPECT_THAT(cut, IsOk());
  EXPECT_LE(passes, kCutPasses);
  return *cut;
}

// Against a sort.
void ExpectKeepsTheLargest(const std::vector<float>& values, int64_t kept) {
  const MagnitudeCut cut = CutOf(values, kept, 7);
  std::vector<float> magnitudes;
  for (const float value : values) magnitudes.push_back(std::abs(value));
  std::ranges::sort(magnitudes, std::greater());
  const auto above =
      std::ranges::count_if(values, [&](float value) { return MagnitudeBits(value) > cut.bits; });
  EXPECT_EQ(above + cut.equal, kept);
  if (kept == 0) return;
  EXPECT_EQ(cut.bits, MagnitudeBits(magnitudes[kept - 1]));
  EXPECT_EQ(cut.splits_ties, std::ranges::count(magnitudes, magnitudes[kept - 1]) > cut.equal);
}

TEST(MagnitudeCutTest, KeepsAsManyAsItIsTold) {
  std::mt19937 generator(3);
  std::normal_distribution<float> normal;
  std::vector<float> values(500);
  for (float& value : values) value = normal(generator);
  for (const int64_t kept : {0, 1, 2, 250, 499, 500}) ExpectKeepsTheLargest(values, kept);
}

TEST(MagnitudeCutTest, EqualOnesAreCounted) {
  const std::vector<float> values = {1, -1, 2, 1, 0, -0.0F, 3, -1, 1, 0};
  for (int64_t kept = 0; kept <= 10; ++kept) ExpectKeepsTheLargest(values, kept);
}

TEST(MagnitudeCutTest, EveryBitOfAMagnitudeCounts) {
  using Limits = std::numeric_limits<float>;
  const std::vector<float> values = {1.0F,
                                     std::nextafter(1.0F, 2.0F),
                                     std::nextafter(1.0F, 0.0F),
                                     Limits::max(),
                                     -Limits::denorm_min(),
                                     Limits::min(),
                                     -3e38F,
                                     0};
  for (int64_t kept = 0; kept <= 8; ++kept) ExpectKeepsTheLargest(values, kept);
}

TEST(MagnitudeCutTest, ErrorsOfTheElementsAreHandedOn) {
  const auto fails = [](absl::FunctionRef<void(const float*, int64_t)>) {
    return absl::CancelledError("gone");
  };
  EXPECT_THAT(FindMagnitudeCut(fails, 1), StatusIs(absl::StatusCode::kCancelled));
}

}  // namespace
}  // namespace adapterd
