// Every formula against plain loops.
#include "core/adapter/peft_fold.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/module_collector.h"
#include "tests/testing/peft_builder.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kExperts = 3;
constexpr int64_t kRank = 2;
constexpr int64_t kIn = 5;
constexpr int64_t kOut = 4;

ModuleInfo InfoOf(ModuleKind kind) {
  ModuleInfo info;
  info.kind = kind;
  info.rank = kRank;
  info.in_features = kIn;
  info.out_features = kOut;
  info.experts = kind == ModuleKind::kExperts ? kExperts : 0;
  return info;
}

Tensor& Of(StoredTensors& stored, TensorRole role) { return stored[static_cast<size_t>(role)]; }

Tensor Random(TestRandom& random, DType dtype, const Shape& shape) {
  return TensorOf(dtype, shape, random.Floats(dtype, *ElementCount(shape)));
}

TEST(PeftFoldTest, EverythingElseIsMovedAsItIs) {
  for (const ModuleKind kind :
       {ModuleKind::kLinear, ModuleKind::kEmbedding, ModuleKind::kConv, ModuleKind::kReplacement}) {
    TestRandom random(1);
    StoredTensors stored(kTensorRoles);
    std::vector<const std::byte*> data;
    for (const TensorRole role : {TensorRole::kLoraA, TensorRole::kLoraB, TensorRole::kLoraBias,
                                  TensorRole::kMagnitude, TensorRole::kWeight, TensorRole::kBias}) {
      Of(stored, role) = Random(random, DType::kF16, {2, static_cast<int64_t>(role) + 1});
      data.push_back(Of(stored, role).bytes().data());
    }
    // AdaLoRA's and VeRA's own tensors belong to pairs: a replacement is moved with any method.
    const auto method = kind == ModuleKind::kReplacement ? PeftMethod::kVera : PeftMethod::kLora;
    const ModuleTensors folded = FoldTensors(method, InfoOf(kind), false, std::move(stored), {});
    size_t i = 0;
    for (const Tensor* tensor : {&folded.lora_a, &folded.lora_b, &folded.lora_bias,
                                 &folded.magnitude, &folded.weight, &folded.bias}) {
      EXPECT_EQ(tensor->bytes().data(), data[i++]);
      EXPECT_EQ(tensor->dtype(), DType::kF16);
    }
  }
}

TEST(PeftFoldTest, AdaLoraScalesTheRowsOfA) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    TestRandom random(2);
    const std::vector<float> a = random.Floats(dtype, kRank * kIn);
    const std::vector<float> b = random.Floats(dtype, kOut * kRank);
    const std::vector<float> e = random.Floats(DType::kBF16, kRank);
    StoredTensors stored(kTensorRoles);
    Of(stored, TensorRole::kLoraA) = TensorOf(dtype, {kRank, kIn}, a);
    Of(stored, TensorRole::kLoraB) = TensorOf(dtype, {kOut, kRank}, b);
    Of(stored, TensorRole::kLoraE) = TensorOf(DType::kBF16, {kRank, 1}, e);
    const ModuleTensors folded = FoldTensors(PeftMethod::kAdaLora, InfoOf(ModuleKind::kLinear),
                                             false, std::move(stored), {});
    EXPECT_EQ(folded.lora_a.dtype(), DType::kF32);
    EXPECT_THAT(folded.lora_a.shape(), ElementsAre(kRank, kIn));
    const std::vector<float> scaled = FloatsOf(folded.lora_a);
    for (int64_t k = 0; k < kRank; ++k) {
      for (int64_t i = 0; i < kIn; ++i) {
        const double exact = static_cast<double>(e[k]) * a[k * kIn + i];
        EXPECT_EQ(scaled[k * kIn + i], static_cast<float>(exact)) << k << ", " << i;
      }
    }
    EXPECT_EQ(folded.lora_b.dtype(), dtype);
    EXPECT_EQ(FloatsOf(folded.lora_b), b);
  }
}

// Projections are as large as the largest module; a smaller one takes their upper left.
TEST(PeftFoldTest, VeraTakesItsPartOfTheProjections) {
  constexpr int64_t kWide = kIn + 3;
  constexpr int64_t kHigh = kOut + 2;
  TestRandom random(3);
  StoredTensors projections(kTensorRoles);
  Of(projections, TensorRole::kLoraA) = Random(random, DType::kF32, {kRank, kWide});
  Of(projections, TensorRole::kLoraB) = Random(random, DType::kBF16, {kHigh, kRank});
  const std::vector<float> a = FloatsOf(Of(projections, TensorRole::kLoraA));
  const std::vector<float> b = FloatsOf(Of(projections, TensorRole::kLoraB));
  const std::vector<float> d = random.Floats(DType::kF32, kRank);
  const std::vector<float> by_row = random.Floats(DType::kF16, kOut);
  StoredTensors stored(kTensorRoles);
  Of(stored, TensorRole::kLambdaD) = TensorOf(DType::kF32, {kRank}, d);
  Of(stored, TensorRole::kLambdaB) = TensorOf(DType::kF16, {kOut}, by_row);
  const ModuleTensors folded = FoldTensors(PeftMethod::kVera, InfoOf(ModuleKind::kLinear), false,
                                           std::move(stored), projections);
  EXPECT_THAT(folded.lora_a.shape(), ElementsAre(kRank, kIn));
  EXPECT_THAT(folded.lora_b.shape(), ElementsAre(kOut, kRank));
  const std::vector<float> folded_a = FloatsOf(folded.lora_a);
  const std::vector<float> folded_b = FloatsOf(folded.lora_b);
  for (int64_t k = 0; k < kRank; ++k) {
    for (int64_t i = 0; i < kIn; ++i) {
      const double exact = static_cast<double>(d[k]) * a[k * kWide + i];
      EXPECT_EQ(folded_a[k * kIn + i], static_cast<float>(exact));
    }
    for (int64_t o = 0; o < kOut; ++o) {
      const double exact = static_cast<double>(by_row[o]) * b[o * kRank + k];
      EXPECT_EQ(folded_b[o * kRank + k], static_cast<float>(exact));
    }
  }
}

// PEFT's ParamWrapper: row e * rank + k of A and column k * experts + e of B make one expert.
TEST(PeftFoldTest, ExpertsComeOutOneAfterTheOther) {
  for (const bool swapped : {false, true}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      SCOPED_TRACE(DTypeName(dtype));
      // What the file calls A works on the outputs when the two are swapped.
      const int64_t wide = swapped ? kOut : kIn;
      const int64_t high = swapped ? kIn : kOut;
      TestRandom random(4);
      const std::vector<float> a = random.Floats(dtype, kExperts * kRank * wide);
      const std::vector<float> b = random.Floats(dtype, high * kRank * kExperts);
      StoredTensors stored(kTensorRoles);
      Of(stored, TensorRole::kLoraA) = TensorOf(dtype, {kExperts * kRank, wide}, a);
      Of(stored, TensorRole::kLoraB) = TensorOf(dtype, {high, kRank * kExperts}, b);
      const ModuleTensors folded = FoldTensors(PeftMethod::kLora, InfoOf(ModuleKind::kExperts),
                                               swapped, std::move(stored), {});
      EXPECT_EQ(folded.lora_a.dtype(), dtype);
      EXPECT_EQ(folded.lora_b.dtype(), dtype);
      EXPECT_THAT(folded.lora_a.shape(), ElementsAre(kExperts * kRank, kIn));
      EXPECT_THAT(folded.lora_b.shape(), ElementsAre(kExperts * kOut, kRank));
      const std::vector<float> folded_a = FloatsOf(folded.lora_a);
      const std::vector<float> folded_b = FloatsOf(folded.lora_b);
      for (int64_t e = 0; e < kExperts; ++e) {
        for (int64_t k = 0; k < kRank; ++k) {
          const auto a_at = [&](int64_t i) { return a[(e * kRank + k) * wide + i]; };
          const auto b_at = [&](int64_t o) { return b[o * kRank * kExperts + k * kExperts + e]; };
          for (int64_t i = 0; i < kIn; ++i) {
            ASSERT_EQ(folded_a[(e * kRank + k) * kIn + i], swapped ? b_at(i) : a_at(i));
          }
          for (int64_t o = 0; o < kOut; ++o) {
            ASSERT_EQ(folded_b[(e * kOut + o) * kRank + k], swapped ? a_at(o) : b_at(o));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace adapterd
