// What a new adapter begins with. tests/integration/creation_test.py computes the same bits anew.
#include "core/adapter/fresh_factors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

#include "core/tensor/convert.h"

namespace adapterd {
namespace {

using ::testing::Each;

constexpr size_t kDraws = 200'000;

ModuleInfo Module(const std::string& path, int64_t in_features, int64_t out_features,
                  ModuleKind kind = ModuleKind::kLinear, DType dtype = DType::kF32) {
  ModuleInfo module;
  module.path = path;
  module.kind = kind;
  module.in_features = in_features;
  module.out_features = out_features;
  module.rank = 8;
  module.lora_a_dtype = module.lora_b_dtype = dtype;
  return module;
}

std::vector<float> ValuesOf(const Tensor& tensor) {
  std::vector<float> values(tensor.bytes().size() / FloatBytes(tensor.dtype()));
  ConvertToF32(tensor.dtype(), tensor.bytes().data(), values.data(),
               static_cast<int64_t>(values.size()));
  return values;
}

std::vector<float> Fresh(const ModuleInfo& module, TensorRole role, uint64_t seed = 7) {
  return ValuesOf(FreshFactor(module, role, seed));
}

double Mean(const std::vector<float>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double Variance(const std::vector<float>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return sum / static_cast<double>(values.size());
}

// Kolmogorov's distance to the distribution function, times sqrt(n): above 1.95 once in a thousand
// samples. The seeds are fixed, so what passes once always does.
double Kolmogorov(std::vector<float> values, const std::function<double(double)>& distribution) {
  std::sort(values.begin(), values.end());
  const auto n = static_cast<double>(values.size());
  double distance = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double expected = distribution(values[i]);
    const auto below = static_cast<double>(i);
    distance =
        std::max({distance, std::abs(expected - below / n), std::abs((below + 1) / n - expected)});
  }
  return distance * std::sqrt(n);
}
constexpr double kKolmogorovBound = 1.95;

TEST(FreshFactorsTest, ALinearAIsUniformWithinTheBoundAndItsBIsZero) {
  const ModuleInfo module = Module("m.0.q_proj", 4096, 32);
  const std::vector<float> a = Fresh(module, TensorRole::kLoraA);
  ASSERT_EQ(a.size(), 8 * 4096);
  const double bound = 1 / std::sqrt(4096.0);
  EXPECT_LT(*std::max_element(a.begin(), a.end()), bound);
  EXPECT_GT(*std::min_element(a.begin(), a.end()), -bound);
  const auto uniform = [bound](double x) { return (x + bound) / (2 * bound); };
  EXPECT_LT(Kolmogorov(a, uniform), kKolmogorovBound);
  const std::vector<float> b = Fresh(module, TensorRole::kLoraB);
  ASSERT_EQ(b.size(), 32 * 8);
  EXPECT_THAT(b, Each(0.0F));
}

TEST(FreshFactorsTest, AnEmbeddingsAIsZeroAndItsBIsNormal) {
  const ModuleInfo module = Module("model.embed_tokens", 100, 4096, ModuleKind::kEmbedding);
  const std::vector<float> a = Fresh(module, TensorRole::kLoraA);
  ASSERT_EQ(a.size(), 8 * 100);
  EXPECT_THAT(a, Each(0.0F));
  const std::vector<float> b = Fresh(module, TensorRole::kLoraB);
  ASSERT_EQ(b.size(), 8 * 4096);
  EXPECT_LT(Kolmogorov(b, [](double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }),
            kKolmogorovBound);
}

TEST(FreshFactorsTest, ManyUniformDrawsHaveTheRightMoments) {
  RandomStream random(3);
  std::vector<float> values(kDraws);
  FillUniform(random, 0.5, values);
  const double error = 4 / std::sqrt(static_cast<double>(kDraws));  // four standard deviations
  EXPECT_NEAR(Mean(values), 0, error * 0.5 / std::sqrt(3.0));
  // Of x^2 for x uniform in +-1/2: mean 1/12, deviation 1/sqrt(180).
  EXPECT_NEAR(Variance(values), 1.0 / 12, error / std::sqrt(180.0));
  EXPECT_GT(*std::max_element(values.begin(), values.end()), 0.4999F);
}

TEST(FreshFactorsTest, ManyNormalDrawsHaveTheRightMomentsAndTails) {
  RandomStream random(4);
  std::vector<float> values(kDraws);
  FillNormal(random, values);
  const double error = 4 / std::sqrt(static_cast<double>(kDraws));
  EXPECT_NEAR(Mean(values), 0, error);
  EXPECT_NEAR(Variance(values), 1, error * std::sqrt(2.0));
  const auto beyond_3 =
      std::count_if(values.begin(), values.end(), [](float x) { return std::abs(x) > 3; });
  const double expected = kDraws * std::erfc(3 / std::sqrt(2.0));  // 540
  EXPECT_NEAR(static_cast<double>(beyond_3), expected, 4 * std::sqrt(expected));
}

TEST(FreshFactorsTest, DependsOnSeedAndPathAlone) {
  const ModuleInfo module = Module("m.0.q_proj", 64, 32);
  const std::vector<float> a = Fresh(module, TensorRole::kLoraA, 1);
  EXPECT_EQ(Fresh(module, TensorRole::kLoraA, 1), a);
  EXPECT_NE(Fresh(module, TensorRole::kLoraA, 2), a);
  EXPECT_NE(Fresh(Module("m.1.q_proj", 64, 32), TensorRole::kLoraA, 1), a);
}

TEST(FreshFactorsTest, NarrowTypesHoldTheRoundedF32Values) {
  const std::vector<float> wide = Fresh(Module("m", 64, 32), TensorRole::kLoraA);
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const Tensor narrow =
        FreshFactor(Module("m", 64, 32, ModuleKind::kLinear, dtype), TensorRole::kLoraA, 7);
    EXPECT_EQ(narrow.dtype(), dtype);
    std::vector<std::byte> expected(narrow.bytes().size());
    ConvertFromF32(wide.data(), dtype, expected.data(), static_cast<int64_t>(wide.size()));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), narrow.bytes().begin()));
  }
}

}  // namespace
}  // namespace adapterd
