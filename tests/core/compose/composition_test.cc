#include "core/compose/composition.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "core/adapter/made_adapter.h"
#include "core/compute/reference.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/svd_oracle.h"

namespace adapterd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kIn = 10;
constexpr int64_t kOut = 6;
constexpr ComposeMethod kMethods[] = {ComposeMethod::kLinear,
                                      ComposeMethod::kCat,
                                      ComposeMethod::kSvd,
                                      ComposeMethod::kTies,
                                      ComposeMethod::kTiesSvd,
                                      ComposeMethod::kDareLinear,
                                      ComposeMethod::kDareTies,
                                      ComposeMethod::kDareLinearSvd,
                                      ComposeMethod::kDareTiesSvd,
                                      ComposeMethod::kMagnitudePrune,
                                      ComposeMethod::kMagnitudePruneSvd};

Tensor Noise(int64_t rows, int64_t cols, uint32_t seed, float size) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, size);
  AlignedBuffer buffer(rows * cols * sizeof(float));
  auto* values = reinterpret_cast<float*>(buffer.data());
  for (int64_t i = 0; i < rows * cols; ++i) values[i] = normal(generator);
  return Tensor(DType::kF32, {rows, cols}, std::move(buffer));
}

ModuleInfo Linear(const std::string& path, int64_t rank) {
  ModuleInfo module;
  module.path = path;
  module.in_features = kIn;
  module.out_features = kOut;
  module.rank = rank;
  module.alpha = 4;
  return module;
}

// Factors that follow from the name and the module alone.
ComposeInput Input(const std::string& name, std::vector<ModuleInfo> modules, double weight = 1,
                   float size = 1) {
  auto manifest =
      std::make_shared<const AdapterManifest>(ManifestOfPairs(std::move(modules), false));
  const uint32_t seed = 100 * static_cast<uint32_t>(name.front());
  auto pair = [manifest, seed, size](size_t module) {
    const ModuleInfo& info = manifest->modules[module];
    const auto own = seed + static_cast<uint32_t>(module) * 2;
    return StoredPair{Noise(info.rank, info.columns(), own, size),
                      Noise(info.out_features, info.rank, own + 1, size)};
  };
  return {name, manifest, pair, weight};
}

std::vector<double> DeltaOf(const ComposeInput& input, double weight) {
  const StoredPair pair = input.pair(0);
  const ReferenceTerm term = {AsMatrix(pair.lora_a), AsMatrix(pair.lora_b),
                              weight * input.manifest->modules[0].scale};
  return ReferenceWeightDelta({&term, 1}, kOut, kIn);
}

void ExpectNear(const std::vector<double>& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  double size = 0;
  double distance = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    size += expected[i] * expected[i];
    distance += (actual[i] - expected[i]) * (actual[i] - expected[i]);
  }
  EXPECT_LE(std::sqrt(distance), 1e-5 * std::sqrt(size));
}

class CompositionTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Composition>> Plan(const ComposeSpec& spec,
                                                    std::vector<ComposeInput> inputs) {
    return Composition::Plan(spec, std::move(inputs), kernels_, pool_);
  }

  // B A of the first module.
  std::vector<double> Delta(Composition& composition) {
    absl::StatusOr<Tensor> a = composition.Take(0, TensorRole::kLoraA, Cancellation());
    absl::StatusOr<Tensor> b = composition.Take(0, TensorRole::kLoraB, Cancellation());
    EXPECT_THAT(a, IsOk());
    EXPECT_THAT(b, IsOk());
    const ModuleInfo& info = composition.manifest()->modules[0];
    EXPECT_THAT(a->shape(), ElementsAre(info.rank, info.columns()));
    EXPECT_THAT(b->shape(), ElementsAre(info.out_features, info.rank));
    EXPECT_EQ(info.scale, 1);
    const ReferenceTerm term = {AsMatrix(*a), AsMatrix(*b), 1};
    return ReferenceWeightDelta({&term, 1}, kOut, kIn);
  }

  Kernels kernels_;
  ThreadPool pool_{"compose", 3, PrepareComputeThread};
};

TEST_F(CompositionTest, CatAndFullSvdAreTheWeightedSumOfTheDeltas) {
  for (const ComposeMethod method : {ComposeMethod::kCat, ComposeMethod::kSvd}) {
    const std::vector<ComposeInput> inputs = {Input("x", {Linear("q", 2)}, 0.5),
                                              Input("y", {Linear("q", 3)}, -2)};
    auto composition = Plan({.method = method, .rank = 5}, inputs);
    ASSERT_THAT(composition, IsOk());
    std::vector<double> expected = DeltaOf(inputs[0], 0.5);
    const std::vector<double> other = DeltaOf(inputs[1], -2);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += other[i];
    ExpectNear(Delta(**composition), expected);
  }
}

TEST_F(CompositionTest, LinearTakesRootsOfWeightAndScaleAndTheSignOnA) {
  const std::vector<ComposeInput> inputs = {Input("x", {Linear("q", 2)}, 0.5),
                                            Input("y", {Linear("q", 2)}, -2)};
  auto composition = Plan({.method = ComposeMethod::kLinear}, inputs);
  ASSERT_THAT(composition, IsOk());
  const StoredPair x = inputs[0].pair(0);
  const StoredPair y = inputs[1].pair(0);
  // Scale is 2: the roots are 1 and 2.
  const ReferenceTerm terms[] = {{AsMatrix(x.lora_a), AsMatrix(x.lora_b), 1},
                                 {AsMatrix(y.lora_a), AsMatrix(y.lora_b), -4},
                                 {AsMatrix(x.lora_a), AsMatrix(y.lora_b), 2},
                                 {AsMatrix(y.lora_a), AsMatrix(x.lora_b), -2}};
  ExpectNear(Delta(**composition), ReferenceWeightDelta(terms, kOut, kIn));
}

TEST_F(CompositionTest, AnSvdOfPrunedDeltasPrunesTheDeltas) {
  const std::vector<ComposeInput> inputs = {Input("x", {Linear("q", 2)}, 1.5),
                                            Input("y", {Linear("q", 2)}, 0)};
  auto composition =
      Plan({.method = ComposeMethod::kMagnitudePruneSvd, .density = 0.3, .rank = 4}, inputs);
  ASSERT_THAT(composition, IsOk());
  std::vector<double> delta = DeltaOf(inputs[0], 1);
  std::vector<double> magnitudes;
  for (const double value : delta) magnitudes.push_back(std::abs(value));
  std::ranges::sort(magnitudes, std::greater());
  for (double& value : delta) value = std::abs(value) >= magnitudes[17] ? 1.5 * value : 0;
  const OracleSvd svd = SvdOracle(delta, kOut, kIn);
  ExpectNear(Delta(**composition), svd.Truncated(4));
  const std::vector<double>& values = (*composition)->singular_values().at("q");
  ASSERT_EQ(values.size(), 4);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(values[i], svd.values[i], 1e-5 * svd.values[0]);
}

TEST_F(CompositionTest, EveryModuleOfAnyAdapterIsThereWithTheRankOfItsMethod) {
  const std::vector<ComposeInput> inputs = {
      Input("x", {Linear("k", 2), Linear("q", 2), Linear("v", 3)}),
      Input("y", {Linear("o", 5), Linear("q", 2), Linear("v", 3)})};
  const auto ranks = [&](const ComposeSpec& spec) {
    auto composition = Plan(spec, inputs);
    EXPECT_THAT(composition, IsOk());
    std::vector<int64_t> result;  // of k, o, q, v
    for (const ModuleInfo& module : (*composition)->manifest()->modules) {
      result.push_back(module.rank);
    }
    return result;
  };
  EXPECT_THAT(ranks({.method = ComposeMethod::kLinear}), ElementsAre(2, 5, 2, 3));
  EXPECT_THAT(ranks({.method = ComposeMethod::kCat}), ElementsAre(2, 5, 4, 6));
  EXPECT_THAT(ranks({.method = ComposeMethod::kSvd}), ElementsAre(2, 5, 4, 5));
  EXPECT_THAT(ranks({.method = ComposeMethod::kSvd, .rank = 3}), ElementsAre(2, 3, 3, 3));
  EXPECT_THAT(ranks({.method = ComposeMethod::kTiesSvd, .rank = 8}), ElementsAre(6, 6, 6, 6));
}

TEST_F(CompositionTest, EqualRequestsGiveEqualBitsOnAnyNumberOfThreads) {
  ThreadPool one("compose", 1, PrepareComputeThread);
  for (const ComposeMethod method : kMethods) {
    std::vector<Tensor> tensors;
    for (ThreadPool* pool : {&pool_, &one}) {
      auto composition = Composition::Plan(
          {.method = method, .density = 0.5, .seed = 3},
          {Input("x", {Linear("q", 2)}), Input("y", {Linear("q", 2)})}, kernels_, *pool);
      ASSERT_THAT(composition, IsOk());
      for (const TensorRole role : {TensorRole::kLoraA, TensorRole::kLoraB}) {
        auto tensor = (*composition)->Take(0, role, Cancellation());
        ASSERT_THAT(tensor, IsOk());
        tensors.push_back(*std::move(tensor));
      }
    }
    EXPECT_TRUE(std::ranges::equal(tensors[0].bytes(), tensors[2].bytes()));
    EXPECT_TRUE(std::ranges::equal(tensors[1].bytes(), tensors[3].bytes()));
  }
}

TEST_F(CompositionTest, MeaninglessNumbersAreRefused) {
  const std::vector<ComposeInput> inputs = {Input("x", {Linear("q", 2)}),
                                            Input("y", {Linear("q", 3)})};
  for (const double density : {0.0, -1.0, 1.01, std::nan("")}) {
    EXPECT_THAT(Plan({.method = ComposeMethod::kTiesSvd, .density = density}, inputs),
                HasReason(Reason::kInvalidField));
    EXPECT_THAT(Plan({.method = ComposeMethod::kCat, .density = density}, inputs), IsOk());
  }
  EXPECT_THAT(Plan({.method = ComposeMethod::kSvd, .rank = 5}, inputs), IsOk());
  for (const int64_t rank : {-1, 6}) {
    const auto plan = Plan({.method = ComposeMethod::kSvd, .rank = rank}, inputs);
    EXPECT_THAT(plan, HasReason(Reason::kInvalidField));
    EXPECT_THAT(plan, HasMessage(HasSubstr("0 to 5")));
  }
  for (const double clamp : {0.0, -0.5, 1.5, std::nan("")}) {
    EXPECT_THAT(Plan({.method = ComposeMethod::kSvd, .svd_clamp = clamp}, inputs),
                HasReason(Reason::kInvalidField));
  }
  EXPECT_THAT(Plan({}, {}), HasReason(Reason::kInvalidField));
  EXPECT_THAT(Plan({.method = ComposeMethod::kCat}, std::vector(kMaxComposeInputs + 1, inputs[0])),
              HasReason(Reason::kInvalidField));
}

TEST_F(CompositionTest, AdaptersThatDoNotGoTogetherAreRefused) {
  const ComposeInput x = Input("x", {Linear("q", 2)});
  for (const ComposeMethod method :
       {ComposeMethod::kLinear, ComposeMethod::kTies, ComposeMethod::kDareLinear,
        ComposeMethod::kDareTies, ComposeMethod::kMagnitudePrune}) {
    const auto plan = Plan({.method = method}, {x, Input("y", {Linear("q", 3)})});
    EXPECT_THAT(plan, HasReason(Reason::kInvalidField));
    EXPECT_THAT(plan, HasMessage(HasSubstr("2 in \"x\" and 3 in \"y\"")));
  }
  EXPECT_THAT(Plan({.method = ComposeMethod::kCat}, {x, Input("y", {Linear("v", 2)})}),
              HasMessage(HasSubstr("modules in common")));
  ModuleInfo wide = Linear("q", 2);
  wide.in_features = kIn + 1;
  EXPECT_THAT(Plan({.method = ComposeMethod::kCat}, {x, Input("y", {wide})}),
              HasReason(Reason::kShapeMismatch));
  ModuleInfo embedding = Linear("q", 2);
  embedding.kind = ModuleKind::kEmbedding;
  EXPECT_THAT(Plan({.method = ComposeMethod::kCat}, {x, Input("y", {embedding})}),
              HasReason(Reason::kShapeMismatch));
}

TEST_F(CompositionTest, WhatAMixtureWouldLoseIsRefused) {
  const auto refuses = [&](auto change) {
    ModuleInfo module = Linear("q", 2);
    change(module);
    EXPECT_THAT(
        Plan({.method = ComposeMethod::kSvd}, {Input("x", {Linear("q", 2)}), Input("y", {module})}),
        HasReason(Reason::kUnsupportedAdapter));
  };
  refuses([](ModuleInfo& module) { module.has_magnitude = true; });
  refuses([](ModuleInfo& module) { module.has_lora_bias = true; });
  refuses([](ModuleInfo& module) { module.replaces_bias = true; });
  refuses([](ModuleInfo& module) { module.kind = ModuleKind::kReplacement; });
}

TEST_F(CompositionTest, ADeltaThatIsTooLargeToBeFormedIsRefused) {
  ModuleInfo huge = Linear("q", 2);
  huge.in_features = int64_t{1} << 18;
  huge.out_features = int64_t{1} << 18;
  const std::vector<ComposeInput> inputs = {Input("x", {huge}), Input("y", {huge})};
  EXPECT_THAT(Plan({.method = ComposeMethod::kTiesSvd, .density = 0.5}, inputs),
              HasReason(Reason::kInvalidField));
  EXPECT_THAT(Plan({.method = ComposeMethod::kSvd}, inputs), IsOk());
}

TEST_F(CompositionTest, WhatDoesNotFitIntoF32IsAnError) {
  for (const ComposeMethod method : {ComposeMethod::kLinear, ComposeMethod::kCat,
                                     ComposeMethod::kSvd, ComposeMethod::kTiesSvd}) {
    auto composition = Plan(
        {.method = method, .density = 0.9},
        {Input("x", {Linear("q", 2)}, 1e37, 1e25F), Input("y", {Linear("q", 2)}, 1e37, 1e25F)});
    ASSERT_THAT(composition, IsOk());
    EXPECT_THAT((*composition)->Take(0, TensorRole::kLoraA, Cancellation()),
                HasReason(Reason::kNonFiniteResult));
  }
}

TEST_F(CompositionTest, StopsWhenNobodyWaits) {
  Cancellation cancellation;
  cancellation.Cancel();
  for (const ComposeMethod method : kMethods) {
    auto composition = Plan({.method = method, .density = 0.5},
                            {Input("x", {Linear("q", 2)}), Input("y", {Linear("q", 2)})});
    ASSERT_THAT(composition, IsOk());
    EXPECT_THAT((*composition)->Take(0, TensorRole::kLoraA, cancellation),
                StatusIs(absl::StatusCode::kCancelled));
  }
}

}  // namespace
}  // namespace adapterd
