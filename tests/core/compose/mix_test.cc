#include "core/compose/mix.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using testing::ElementsAre;

class VectorRows : public RowSource {
 public:
  VectorRows(std::vector<float> values, int64_t cols) : values_(std::move(values)), cols_(cols) {}
  absl::Status Read(int64_t first, int64_t count, float* rows) const override {
    std::copy_n(values_.begin() + first * cols_, count * cols_, rows);
    return absl::OkStatus();
  }

 private:
  const std::vector<float> values_;
  const int64_t cols_;
};

struct Input {
  std::vector<float> values;
  double weight = 1;
  uint64_t random = 0;
};

std::vector<float> Mixed(const std::vector<Input>& inputs, const MixRule& rule, int64_t cols,
                         int threads = 2) {
  ThreadPool pool("mix", threads);
  std::vector<MixInput> mix;
  for (const Input& input : inputs) {
    mix.push_back({std::make_unique<VectorRows>(input.values, cols), input.weight,
                   RandomStream(input.random)});
  }
  std::vector<float> mixed(inputs[0].values.size());
  const auto rows = static_cast<int64_t>(mixed.size()) / cols;
  EXPECT_THAT(Mix(pool, mix, rule, rows, cols, mixed.data(), Cancellation()), IsOk());
  return mixed;
}

std::vector<float> Noise(size_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

TEST(MixTest, WithoutMoreItIsTheWeightedSum) {
  EXPECT_THAT(Mixed({{{1, 2, 3, 4}, 2}, {{1, 0, -1, 8}, -0.5}}, MixRule(), 2),
              ElementsAre(1.5, 4, 6.5, 4));
}

TEST(MixTest, MagnitudePruningKeepsTheLargestOfTheWholeMatrix) {
  const std::vector<Input> one = {{{1, -2, 3, -4, 0.5, 6}}};
  EXPECT_THAT(Mixed(one, {Pruning::kMagnitude, 0.5}, 2), ElementsAre(0, 0, 3, -4, 0, 6));
  EXPECT_THAT(Mixed(one, {Pruning::kMagnitude, 0.49}, 2), ElementsAre(0, 0, 0, -4, 0, 6));
  EXPECT_THAT(Mixed(one, {Pruning::kMagnitude, 0.1}, 2), ElementsAre(0, 0, 0, 0, 0, 0));
}

TEST(MixTest, OfEqualMagnitudesTheFirstAreKept) {
  std::vector<float> values(3 * kMixRows * 2);
  for (size_t i = 0; i < values.size(); ++i) values[i] = i % 2 == 0 ? 1 : -1;
  const std::vector<float> mixed = Mixed({{values}}, {Pruning::kMagnitude, 0.5}, 2);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(mixed[i], i < values.size() / 2 ? values[i] : 0) << i;
  }
}

TEST(MixTest, TheElectedSignIsThatOfTheSumOrOfTheMost) {
  // Columns: all agree; the sum is against the most; cancelled; zeros; one alone.
  const std::vector<Input> inputs = {
      {{1, 5, 1, 0, 0}, 1}, {{2, -1, -1, 0, 0}, 10}, {{3, -1, 0, 0, -2}, 100}};
  EXPECT_THAT(Mixed(inputs, {.election = SignElection::kTotal}, 5),
              ElementsAre(107, 5, 1, 0, -200));
  EXPECT_THAT(Mixed(inputs, {.election = SignElection::kFrequency}, 5),
              ElementsAre(107, -55, 1, 0, -200));
}

TEST(MixTest, NegativeWeightsDoNotVote) {
  EXPECT_THAT(Mixed({{{1}, -1}, {{2}, -1}}, {.election = SignElection::kTotal}, 1),
              ElementsAre(-1.5));
}

TEST(MixTest, RandomPruningKeepsAboutItsPartAndItsMean) {
  const int64_t count = 40'000;
  const std::vector<float> ones(count, 1);
  const std::vector<float> mixed = Mixed({{ones, 1, 99}}, {Pruning::kRandom, 0.3}, 100);
  const auto kept = std::ranges::count_if(mixed, [](float value) { return value != 0; });
  // Five standard deviations of a binomial distribution.
  EXPECT_NEAR(static_cast<double>(kept), 0.3 * count, 5 * std::sqrt(0.3 * 0.7 * count));
  for (const float value : mixed) EXPECT_TRUE(value == 0 || value == static_cast<float>(1 / 0.3));
}

TEST(MixTest, RandomPruningFollowsItsStreamElementByElement) {
  const std::vector<float> values = Noise(kMixRows * 5 * 3, 1);
  const std::vector<float> mixed = Mixed({{values, 1, 7}}, {Pruning::kRandom, 0.5}, 3);
  RandomStream random(7);
  for (size_t i = 0; i < values.size(); ++i) {
    const bool kept = random.Next() < (uint64_t{1} << 63);
    EXPECT_EQ(mixed[i], kept ? values[i] * 2 : 0) << i;
  }
}

TEST(MixTest, DensityOneLeavesAllAsItIs) {
  const std::vector<float> values = Noise(100, 2);
  for (const Pruning pruning : {Pruning::kMagnitude, Pruning::kRandom}) {
    EXPECT_EQ(Mixed({{values}}, {pruning, 1}, 10), values);
  }
}

TEST(MixTest, IsTheSameOnAnyNumberOfThreads) {
  const std::vector<Input> inputs = {{Noise(7000, 3), 0.7, 1}, {Noise(7000, 4), -0.2, 2}};
  for (const Pruning pruning : {Pruning::kMagnitude, Pruning::kRandom}) {
    const MixRule rule = {pruning, 0.4, SignElection::kTotal};
    EXPECT_EQ(Mixed(inputs, rule, 7, 1), Mixed(inputs, rule, 7, 4));
  }
}

TEST(MixTest, StopsWhenNobodyWaits) {
  ThreadPool pool("mix", 1);
  std::vector<MixInput> inputs(1);
  inputs[0].rows = std::make_unique<VectorRows>(std::vector<float>(4), 2);
  Cancellation cancellation;
  cancellation.Cancel();
  float mixed[4];
  EXPECT_THAT(Mix(pool, inputs, MixRule(), 2, 2, mixed, cancellation),
              StatusIs(absl::StatusCode::kCancelled));
}

}  // namespace
}  // namespace adapterd
