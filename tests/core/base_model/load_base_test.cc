#include "core/base_model/load_base.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>

#include "tests/testing/checkpoint_builder.h"
#include "tests/testing/peft_builder.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;

class LoadBaseTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::shared_ptr<HostedBase>> Load(std::vector<std::string> modules = {},
                                                   std::optional<int64_t> nf4_block = {}) {
    const auto roots = SourceRoots::Open({{"", dir_.path().string()}});
    return LoadHostedBase({"m", "m", std::move(modules), nf4_block}, *roots, *budget_, pool_,
                          Cancellation());
  }

  static std::vector<std::string> PathsOf(const HostedBase& base) {
    std::vector<std::string> paths;
    for (const HostedModule& module : base.modules()) paths.push_back(module.path);
    return paths;
  }

  const TempDir dir_;
  const std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create(1 << 20);
  ThreadPool pool_{"io", 2};
};

TEST_F(LoadBaseTest, WeightsBiasesAndParametersBecomeModules) {
  CheckpointBuilder()
      .Add("a.q.weight", {4, 6}, DType::kBF16)
      .Add("a.q.bias", {4})
      .Add("a.experts.down", {3, 4, 6}, DType::kF16)
      .Add("a.conv.weight", {4, 2, 3, 3})
      .Add("norm.weight", {6})
      .Add("scale", {})
      .Add("position_ids", {8}, DType::kI64)
      .Write(dir_, "m");
  const auto base = Load();
  ASSERT_THAT(base.status(), IsOk());
  EXPECT_THAT(PathsOf(**base), ElementsAre("a.conv", "a.experts.down", "a.q", "norm", "scale"));
  const std::vector<HostedModule>& modules = (*base)->modules();
  EXPECT_EQ(modules[0].rows, 4);
  EXPECT_EQ(modules[0].cols, 18);
  EXPECT_EQ(modules[1].rows, 12);
  EXPECT_EQ(modules[1].cols, 6);
  EXPECT_TRUE(modules[1].is_parameter);
  EXPECT_EQ(modules[2].bias.shape(), Shape{4});
  EXPECT_EQ(modules[2].memory_bytes, 4 * 6 * 2 + 4 * 4);
  EXPECT_EQ(modules[4].rows * modules[4].cols, 1);
  EXPECT_EQ(budget_->used(MemoryKind::kBaseModels), (*base)->base_bytes());
  // Byte i of the first tensor that the builder was given is i.
  EXPECT_EQ(modules[2].weight->bytes()[47], std::byte{47});
}

TEST_F(LoadBaseTest, ATiedHeadSharesTheEmbedding) {
  CheckpointBuilder().Add("model.embed_tokens.weight", {5, 4}).Write(dir_, "m");
  EXPECT_THAT(PathsOf(**Load()), ElementsAre("model.embed_tokens"));  // nobody says that it is
  dir_.Write("m/config.json", R"({"model_type": "llama", "tie_word_embeddings": true})");
  const auto base = Load();
  ASSERT_THAT(base.status(), IsOk());
  ASSERT_THAT(PathsOf(**base), ElementsAre("lm_head", "model.embed_tokens"));
  EXPECT_EQ((*base)->modules()[0].weight, (*base)->modules()[1].weight);
  EXPECT_EQ((*base)->base_bytes(), 5 * 4 * 4);
  const auto alone = Load({"lm_head"});
  ASSERT_THAT(alone.status(), IsOk());
  EXPECT_EQ((*alone)->base_bytes(), 5 * 4 * 4);
  dir_.Write("m/config.json", R"({"model_type": "llama", "tie_word_embeddings": false})");
  EXPECT_THAT(Load({"lm_head"}).status(), HasReason(Reason::kModuleNotTargeted));
}

TEST_F(LoadBaseTest, OtherTypesAreRefusedByNameWhenTheyAreAskedFor) {
  CheckpointBuilder()
      .Add("a.q.weight", {4, 4}, DType::kF8E4M3)
      .Add("b.q.weight", {4, 4})
      .Add("b.v.qweight", {4, 4}, DType::kI32)
      .Write(dir_, "m");
  for (const auto& patterns : std::vector<std::vector<std::string>>{{}, {"a"}, {"b.v"}}) {
    const absl::Status status = Load(patterns).status();
    EXPECT_THAT(status, HasReason(Reason::kUnsupportedDtype));
  }
  EXPECT_THAT(Load({"a.q"}).status(), HasErrorMetadata("actual", "F8_E4M3"));
  EXPECT_THAT(Load({"b.v"}).status(), HasErrorMetadata("tensor", "b.v.qweight"));
  EXPECT_THAT(PathsOf(**Load({"b.q"})), ElementsAre("b.q"));
  EXPECT_EQ(budget_->used(), 0);
}

TEST_F(LoadBaseTest, TwoTensorsOfOneModuleAreRefused) {
  CheckpointBuilder().Add("a", {4}).Add("a.weight", {4, 4}).Write(dir_, "m");
  EXPECT_THAT(Load().status(), HasReason(Reason::kMalformedTensorFile));
}

TEST_F(LoadBaseTest, LinearLayersAloneAreQuantised) {
  TestRandom random(3);
  const std::string bytes = BytesOf(DType::kBF16, random.Floats(DType::kBF16, 130));
  CheckpointBuilder()
      .AddBytes("q.weight", {10, 13}, DType::kBF16, bytes)
      .AddBytes("embed_tokens.weight", {10, 13}, DType::kBF16, bytes)
      .AddBytes("norm.weight", {130}, DType::kBF16, bytes)
      .Write(dir_, "m");
  const auto base = Load({}, 64);
  ASSERT_THAT(base.status(), IsOk());
  const std::vector<HostedModule>& modules = (*base)->modules();
  EXPECT_EQ(modules[0].nf4, nullptr);
  EXPECT_EQ(modules[1].nf4, nullptr);
  ASSERT_NE(modules[2].nf4, nullptr);
  EXPECT_EQ(modules[2].memory_bytes, 65 + 3 * 4);  // two codes a byte, three blocks
  EXPECT_GT(modules[2].quantization_error, 0);
  EXPECT_EQ(budget_->used(), (*base)->base_bytes());
}

TEST_F(LoadBaseTest, WhatCannotBeQuantisedIsRefused) {
  std::vector<float> values(16, 1.0f);
  values[5] = std::numeric_limits<float>::quiet_NaN();
  CheckpointBuilder()
      .AddBytes("q.weight", {4, 4}, DType::kF32, BytesOf(DType::kF32, values))
      .Write(dir_, "m");
  EXPECT_THAT(Load({}, 64).status(), HasReason(Reason::kNonFiniteWeights));
  EXPECT_THAT(Load().status(), IsOk());
  EXPECT_EQ(budget_->used(), 0);
}

TEST_F(LoadBaseTest, TheFingerprintIsOfConfigAndHeaders) {
  CheckpointBuilder().Add("q.weight", {4, 4}).Add("v.weight", {4, 4}).Write(dir_, "m");
  const std::string one = (*Load())->fingerprint();
  EXPECT_EQ((*Load({"q"}))->fingerprint(), one);
  dir_.Write("m/config.json", "{}");
  const std::string with_config = (*Load())->fingerprint();
  EXPECT_NE(with_config, one);
  std::filesystem::remove(dir_ / "m/model.safetensors");
  CheckpointBuilder()
      .Add("q.weight", {4, 4}, DType::kF32, "1.safetensors")
      .Add("v.weight", {4, 4}, DType::kF32, "2.safetensors")
      .Write(dir_, "m");
  EXPECT_EQ((*Load())->fingerprint(), with_config);
}

TEST_F(LoadBaseTest, OverTheBudgetNothingIsRead) {
  CheckpointBuilder().Add("q.weight", {1024, 300}).Write(dir_, "m");
  EXPECT_THAT(Load().status(), HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_EQ(budget_->used(), 0);
}

}  // namespace
}  // namespace adapterd
