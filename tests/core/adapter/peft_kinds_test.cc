// Every kind of tensor that PEFT writes: planned when it is whole, refused by name when it is not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "core/adapter/peft_plan.h"
#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::NotNull;

const char kQ[] = "m.0.q_proj";
const std::string kP = "base_model.model.";

std::string A(const std::string& module) { return kP + module + ".lora_A.weight"; }
std::string B(const std::string& module) { return kP + module + ".lora_B.weight"; }
std::string Magnitude(const std::string& module) { return kP + module + ".lora_magnitude_vector"; }

// Only what the tensors say: nothing about targets without any.
const AdapterFolder::Keys kOnlyQ = {{"target_modules", R"(["q_proj"])"}};

// The manifest of a folder that is to open.
std::shared_ptr<const AdapterManifest> ManifestOf(AdapterFolder& folder) {
  const auto reader = folder.WriteAndOpen();
  EXPECT_THAT(reader, NotNull()) << folder.problems().ToStatus();
  return reader == nullptr ? std::make_shared<const AdapterManifest>() : reader->manifest();
}

TEST(PeftKindsTest, DoraHasAMagnitudeForEachOutput) {
  AdapterFolder folder;
  folder.AddPair(kQ).Add(Magnitude(kQ), {3}).Config({{"use_dora", "true"}});
  folder.Config(kOnlyQ);
  const auto manifest = ManifestOf(folder);
  EXPECT_EQ(manifest->method, "dora");
  ASSERT_EQ(manifest->modules.size(), 1u);
  EXPECT_TRUE(manifest->modules[0].has_magnitude);
  EXPECT_THAT(folder.problems().items(), ElementsAre(IsWarning("base_checkpoint")));
}

TEST(PeftKindsTest, EmbeddingsHaveAColumnForEachToken) {
  AdapterFolder folder;
  folder.Add(kP + "e.lora_embedding_A", {2, 9}, DType::kBF16);
  folder.Add(kP + "e.lora_embedding_B", {4, 2}).Config({{"target_modules", R"(["e"])"}});
  const auto manifest = ManifestOf(folder);
  ASSERT_EQ(manifest->modules.size(), 1u);
  const ModuleInfo& module = manifest->modules[0];
  EXPECT_EQ(module.path, "e");
  EXPECT_EQ(module.kind, ModuleKind::kEmbedding);
  EXPECT_EQ(module.in_features, 9);
  EXPECT_EQ(module.out_features, 4);
  EXPECT_EQ(module.rank, 2);
  EXPECT_EQ(module.scale, 2);
  EXPECT_EQ(module.lora_a_dtype, DType::kBF16);
  EXPECT_EQ(module.lora_b_dtype, DType::kF32);
}

TEST(PeftKindsTest, ConvolutionsHaveAKernel) {
  AdapterFolder folder;
  folder.Add(A("m.0.q_proj"), {2, 4, 3, 5}).Add(B("m.0.q_proj"), {6, 2, 1, 1});
  folder.Add(A("m.1.q_proj"), {2, 4, 3}).Add(B("m.1.q_proj"), {6, 2, 1});
  folder.Add(A("m.2.q_proj"), {2, 4, 1, 1, 1}).Add(B("m.2.q_proj"), {6, 2, 1, 1, 1});
  const auto manifest = ManifestOf(folder);
  ASSERT_EQ(manifest->modules.size(), 3u);
  const std::vector<int64_t> kernels = {15, 3, 1};
  for (size_t i = 0; i < 3; ++i) {
    const ModuleInfo& module = manifest->modules[i];
    EXPECT_EQ(module.kind, ModuleKind::kConv);
    EXPECT_EQ(module.in_features, 4);
    EXPECT_EQ(module.out_features, 6);
    EXPECT_EQ(module.kernel_elements, kernels[i]);
    EXPECT_EQ(module.columns(), 4 * kernels[i]);
    EXPECT_EQ(module.parameter_count(), 2 * (4 * kernels[i] + 6));
  }
}

TEST(PeftKindsTest, BiasesBelongToTheirPairs) {
  AdapterFolder own;
  own.AddPair(kQ).Add(kP + kQ + ".lora_B.bias", {3}).Config({{"lora_bias", "true"}});
  EXPECT_TRUE(ManifestOf(own)->modules[0].has_lora_bias);
  EXPECT_FALSE(ManifestOf(own)->modules[0].replaces_bias);

  AdapterFolder replaced;
  replaced.AddPair(kQ).Add(kP + kQ + ".base_layer.bias", {3}).Config({{"bias", "\"lora_only\""}});
  const auto manifest = ManifestOf(replaced.Config(kOnlyQ));
  ASSERT_EQ(manifest->modules.size(), 1u);
  EXPECT_TRUE(manifest->modules[0].replaces_bias);
  EXPECT_THAT(replaced.problems().items(), ElementsAre(IsWarning("ApplyProjection cannot apply")));
}

TEST(PeftKindsTest, BiasesOfOtherLayersAreReplacements) {
  AdapterFolder folder;
  folder.AddPair(kQ).Add(kP + "m.0.norm.bias", {7}, DType::kF16).Config({{"bias", "\"all\""}});
  const auto manifest = ManifestOf(folder);
  ASSERT_EQ(manifest->modules.size(), 2u);
  const ModuleInfo& norm = manifest->modules[0];
  EXPECT_EQ(norm.path, "m.0.norm");
  EXPECT_EQ(norm.kind, ModuleKind::kReplacement);
  EXPECT_TRUE(norm.replaces_bias);
  EXPECT_THAT(norm.weight_shape, IsEmpty());
  EXPECT_EQ(norm.out_features, 7);
  EXPECT_EQ(norm.pairs(), 0);
  EXPECT_EQ(manifest->parameter_count(), 7 + manifest->modules[1].parameter_count());
}

TEST(PeftKindsTest, SavedModulesAreReplacements) {
  AdapterFolder folder;
  folder.AddPair(kQ).Add(kP + "score.weight", {5, 4}).Add(kP + "score.bias", {5});
  folder.Add(kP + "m.conv.weight", {2, 3, 4}, DType::kBF16).Add(kP + "m.norm.weight", {6});
  folder.Add(kP + "lm_head.weight", {9, 4});  // PEFT saves resized vocabularies unasked
  folder.Config({{"modules_to_save", R"(["conv", "norm"])"}, {"task_type", "\"SEQ_CLS\""}});
  const auto manifest = ManifestOf(folder);
  ASSERT_EQ(manifest->modules.size(), 5u);
  const ModuleInfo& head = manifest->modules[0];
  EXPECT_EQ(head.path, "lm_head");
  EXPECT_THAT(head.weight_shape, ElementsAre(9, 4));
  const ModuleInfo& conv = manifest->modules[2];
  EXPECT_EQ(conv.path, "m.conv");
  EXPECT_EQ(conv.weight_dtype, DType::kBF16);
  EXPECT_THAT(conv.weight_shape, ElementsAre(2, 3, 4));
  EXPECT_EQ(conv.out_features, 2);
  EXPECT_EQ(conv.in_features, 12);
  const ModuleInfo& norm = manifest->modules[3];
  EXPECT_EQ(norm.path, "m.norm");
  EXPECT_EQ(norm.out_features, 6);
  EXPECT_EQ(norm.in_features, 0);
  const ModuleInfo& score = manifest->modules[4];
  EXPECT_EQ(score.path, "score");
  EXPECT_TRUE(score.replaces_bias);
  for (const size_t i : {0, 2, 3, 4}) {
    EXPECT_EQ(manifest->modules[i].kind, ModuleKind::kReplacement);
  }
}

// Both hold the same: the module itself, and PEFT's copy of it. `original_module` is the base's.
TEST(PeftKindsTest, CopiesGiveWayToTheModuleItself) {
  AdapterFolder folder;
  folder.AddPair(kQ).Config({{"modules_to_save", R"(["score"])"}});
  folder.Add("score.modules_to_save.default.weight", {5, 4}).Add("score.weight", {5, 4});
  folder.Add("score.original_module.weight", {5, 4});
  const auto manifest = ManifestOf(folder);
  ASSERT_EQ(manifest->modules.size(), 2u);
  EXPECT_EQ(manifest->modules[1].path, "score");
  AdapterFolder alone;
  alone.AddPair(kQ).Config({{"modules_to_save", R"(["score"])"}});
  EXPECT_EQ(ManifestOf(alone.Add("score.modules_to_save.x.weight", {5, 4}))->modules.size(), 2u);
}

TEST(PeftKindsTest, AReplacedWeightLiesBehindThePairThatIsAddedToIt) {
  AdapterFolder folder;
  folder.Add("embed_tokens.lora_embedding_A", {2, 9}).Add("embed_tokens.lora_embedding_B", {4, 2});
  folder.Add("embed_tokens.base_layer.weight", {9, 4});
  folder.Config({{"target_modules", R"(["embed_tokens"])"}});
  const auto manifest = ManifestOf(folder);
  ASSERT_EQ(manifest->modules.size(), 2u);
  EXPECT_EQ(manifest->modules[0].kind, ModuleKind::kEmbedding);
  EXPECT_EQ(manifest->modules[1].kind, ModuleKind::kReplacement);
  EXPECT_EQ(manifest->modules[0].path, manifest->modules[1].path);
  EXPECT_EQ(manifest->index.Find({"embed_tokens", "", {}}).value(), 0u);
}

TEST(PeftKindsTest, TokenRowsKnowTheirTokens) {
  for (const char* indices : {"[7, 0, 3]", R"({"e": [7, 0, 3]})"}) {
    AdapterFolder folder;
    folder.AddPair(kQ).Add(kP + "m.e.token_adapter.trainable_tokens_delta", {3, 4}, DType::kF16);
    folder.Config({{"trainable_token_indices", indices}});
    const auto manifest = ManifestOf(folder);
    ASSERT_EQ(manifest->modules.size(), 2u);
    const ModuleInfo& rows = manifest->modules[1];
    EXPECT_EQ(rows.path, "m.e");
    EXPECT_EQ(rows.kind, ModuleKind::kReplacement);
    EXPECT_THAT(rows.token_ids, ElementsAre(7, 0, 3));
    EXPECT_THAT(rows.weight_shape, ElementsAre(3, 4));
    EXPECT_EQ(rows.weight_dtype, DType::kF16);
  }
}

TEST(PeftKindsTest, AdaLoraScalesByItsFirstRank) {
  AdapterFolder folder;
  folder.Add(kP + kQ + ".lora_A", {2, 4}, DType::kF16).Add(kP + kQ + ".lora_B", {3, 2});
  folder.Add(kP + kQ + ".lora_E", {2, 1});
  folder.Config({{"peft_type", "\"ADALORA\""}, {"init_r", "3"}, {"lora_alpha", "6"}});
  folder.Config({{"rank_pattern", R"({"m.0.q_proj.lora_E": [true, false, true]})"}});
  const auto manifest = ManifestOf(folder);
  EXPECT_EQ(manifest->method, "adalora");
  ASSERT_EQ(manifest->modules.size(), 1u);
  EXPECT_EQ(manifest->modules[0].rank, 2);
  EXPECT_EQ(manifest->modules[0].scale, 6 / (3 + 1e-5));
  EXPECT_EQ(manifest->modules[0].lora_a_dtype, DType::kF32);  // E is folded in
}

// The bias was trained all the same.
TEST(PeftKindsTest, APrunedModuleKeepsItsBias) {
  AdapterFolder folder;
  folder.Config({{"peft_type", "\"ADALORA\""}, {"init_r", "2"}, {"bias", "\"all\""}});
  folder.Config({{"rank_pattern", R"({"m.1.q_proj.lora_E": [false, false]})"}});
  for (const std::string module : {"m.0.q_proj", "m.1.q_proj"}) {
    const int64_t rank = module == kQ ? 2 : 0;
    folder.Add(kP + module + ".lora_A", {rank, 4}).Add(kP + module + ".lora_B", {3, rank});
    folder.Add(kP + module + ".lora_E", {rank, 1}).Add(kP + module + ".bias", {3});
  }
  const auto manifest = ManifestOf(folder);
  ASSERT_EQ(manifest->modules.size(), 2u);
  EXPECT_EQ(manifest->modules[0].pairs(), 1);
  EXPECT_TRUE(manifest->modules[0].replaces_bias);
  EXPECT_EQ(manifest->modules[1].kind, ModuleKind::kLinear);
  EXPECT_EQ(manifest->modules[1].pairs(), 0);
  EXPECT_TRUE(manifest->modules[1].replaces_bias);
  EXPECT_EQ(manifest->modules[1].out_features, 3);
}

AdapterFolder& AddVera(AdapterFolder& folder) {
  folder.Config({{"peft_type", "\"VERA\""}, {"projection_prng_key", "0"}});
  folder.Without("lora_alpha").Config({{"target_modules", R"(["q_proj"])"}});
  folder.Add("base_model.vera_A", {2, 6}).Add("base_model.vera_B", {5, 2});
  return folder.Add(kP + kQ + ".vera_lambda_d", {2}).Add(kP + kQ + ".vera_lambda_b", {3});
}

TEST(PeftKindsTest, VeraSharesItsProjections) {
  AdapterFolder folder;
  const auto manifest = ManifestOf(AddVera(folder));
  EXPECT_EQ(manifest->method, "vera");
  ASSERT_EQ(manifest->modules.size(), 1u);
  const ModuleInfo& module = manifest->modules[0];
  EXPECT_EQ(module.rank, 2);
  EXPECT_EQ(module.in_features, 6);
  EXPECT_EQ(module.out_features, 3);
  EXPECT_EQ(module.scale, 1);
  EXPECT_THAT(folder.problems().items(), ElementsAre(IsWarning("6 is assumed for all")));
}

TEST(PeftKindsTest, ExpertsArePlannedFromTheInsideOut) {
  AdapterFolder folder;
  folder.Config({{"target_parameters", R"(["experts.down_proj", "experts.gate_up_proj"])"},
                 {"target_modules", "[]"},
                 {"peft_version", "\"0.19.1\""}});
  // The outer wrapper is that of the parameter which the module registers last.
  folder.AddPair("m.0.experts", 6, 7, 4).AddPair("m.0.experts.base_layer", 6, 4, 14);
  const auto manifest = ManifestOf(folder);
  ASSERT_EQ(manifest->modules.size(), 2u);
  const ModuleInfo& down = manifest->modules[0];
  EXPECT_EQ(down.path, "m.0.experts.down_proj");
  EXPECT_EQ(down.kind, ModuleKind::kExperts);
  EXPECT_EQ(down.experts, 3);
  EXPECT_EQ(down.rank, 2);
  EXPECT_EQ(down.scale, 2);
  EXPECT_EQ(down.in_features, 7);
  EXPECT_EQ(down.out_features, 4);
  EXPECT_EQ(down.parameter_count(), 3 * 2 * (7 + 4));
  const ModuleInfo& up = manifest->modules[1];
  EXPECT_EQ(up.path, "m.0.experts.gate_up_proj");
  EXPECT_EQ(up.in_features, 4);
  EXPECT_EQ(up.out_features, 14);
}

TEST(PeftKindsTest, TheParameterNamedWeightIsALinearLayer) {
  AdapterFolder folder;
  folder.Config({{"target_parameters", R"(["router.weight"])"}, {"target_modules", "[]"}});
  const auto manifest = ManifestOf(folder.AddPair("m.0.router", 2, 8, 3));
  ASSERT_EQ(manifest->modules.size(), 1u);
  EXPECT_EQ(manifest->modules[0].path, "m.0.router");
  EXPECT_EQ(manifest->modules[0].kind, ModuleKind::kLinear);
  EXPECT_FALSE(manifest->modules[0].replaces_bias);
  folder.Add("m.0.router.base_layer.bias", {3}).Config({{"bias", "\"lora_only\""}});
  const auto with_bias = ManifestOf(folder);
  ASSERT_EQ(with_bias->modules.size(), 1u);
  EXPECT_TRUE(with_bias->modules[0].replaces_bias);
}

// What only training uses is left alone.
TEST(PeftKindsTest, BuffersOfTrainingAreIgnored) {
  AdapterFolder folder;
  folder.AddPair(kQ).Add(kP + kQ + ".lora_velora_embed", {3});
  EXPECT_EQ(ManifestOf(folder)->modules.size(), 1u);
}

}  // namespace
}  // namespace adapterd
