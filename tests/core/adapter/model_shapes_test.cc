#include "core/adapter/model_shapes.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Of Llama 3 8B, but for the number of layers.
ModelGeometry Llama() {
  ModelGeometry geometry;
  geometry.hidden_size = 4096;
  geometry.intermediate_size = 14336;
  geometry.num_layers = 2;
  geometry.num_attention_heads = 32;
  geometry.num_key_value_heads = 8;
  geometry.vocab_size = 128256;
  return geometry;
}

// "path out x in" of each module.
std::vector<std::string> Described(const ModelGeometry& geometry,
                                   const std::vector<std::string>& targets) {
  const auto modules = ModulesOf(geometry, targets);
  EXPECT_TRUE(modules.ok()) << modules.status();
  std::vector<std::string> lines;
  for (const ModuleInfo& module : modules.value()) {
    lines.push_back(fmt::format("{}{} {}x{}", module.path,
                                module.kind == ModuleKind::kEmbedding ? " (embedding)" : "",
                                module.out_features, module.in_features));
  }
  return lines;
}

// What transformers' LlamaForCausalLM has for meta-llama/Meta-Llama-3-8B.
TEST(ModelShapesTest, GroupedQueriesHaveNarrowKeysAndValues) {
  ModelGeometry geometry = Llama();
  geometry.num_layers = 1;
  EXPECT_THAT(
      Described(geometry,
                {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
      ElementsAre(
          "model.layers.0.mlp.down_proj 4096x14336", "model.layers.0.mlp.gate_proj 14336x4096",
          "model.layers.0.mlp.up_proj 14336x4096", "model.layers.0.self_attn.k_proj 1024x4096",
          "model.layers.0.self_attn.o_proj 4096x4096", "model.layers.0.self_attn.q_proj 4096x4096",
          "model.layers.0.self_attn.v_proj 1024x4096"));
}

TEST(ModelShapesTest, WithoutKeyValueHeadsThereAreAsManyAsQueries) {
  ModelGeometry geometry = Llama();
  geometry.num_key_value_heads = 0;
  EXPECT_THAT(Described(geometry, {"k_proj"}),
              ElementsAre("model.layers.0.self_attn.k_proj 4096x4096",
                          "model.layers.1.self_attn.k_proj 4096x4096"));
}

// google/gemma-2-9b: 16 heads of 256 over a width of 3584.
TEST(ModelShapesTest, AHeadMayBeWiderThanItsShareOfTheModel) {
  ModelGeometry geometry;
  geometry.hidden_size = 3584;
  geometry.num_layers = 1;
  geometry.num_attention_heads = 16;
  geometry.num_key_value_heads = 8;
  geometry.head_dim = 256;
  EXPECT_THAT(Described(geometry, {"q_proj", "k_proj", "o_proj"}),
              ElementsAre("model.layers.0.self_attn.k_proj 2048x3584",
                          "model.layers.0.self_attn.o_proj 3584x4096",
                          "model.layers.0.self_attn.q_proj 4096x3584"));
}

// microsoft/Phi-3-mini-4k-instruct: qkv_proj 9216x3072, gate_up_proj 16384x3072.
TEST(ModelShapesTest, FusedTargetsLieNextToEachOther) {
  ModelGeometry geometry;
  geometry.hidden_size = 3072;
  geometry.intermediate_size = 8192;
  geometry.num_layers = 1;
  geometry.num_attention_heads = 32;
  EXPECT_THAT(Described(geometry, {"qkv_proj", "gate_up_proj"}),
              ElementsAre("model.layers.0.mlp.gate_up_proj 16384x3072",
                          "model.layers.0.self_attn.qkv_proj 9216x3072"));
  EXPECT_THAT(Described(Llama(), {"qkv_proj"}).front(), HasSubstr("6144x4096"));  // grouped
}

TEST(ModelShapesTest, EmbeddingAndHeadAreOneModuleEach) {
  EXPECT_THAT(Described(Llama(), {"lm_head", "embed_tokens"}),
              ElementsAre("lm_head 128256x4096", "model.embed_tokens (embedding) 4096x128256"));
  ModelGeometry geometry;  // needs nothing of the layers
  geometry.hidden_size = 8;
  geometry.vocab_size = 100;
  EXPECT_THAT(Described(geometry, {"lm_head"}), ElementsAre("lm_head 100x8"));
}

TEST(ModelShapesTest, TemplatesSayWhereAModelHasItsModules) {
  ModelGeometry geometry = Llama();
  geometry.path_templates = {{"q_proj", "transformer.h.{layer}.attn.{target}"},
                             {"lm_head", "language_model.lm_head"}};
  EXPECT_THAT(
      Described(geometry, {"q_proj", "lm_head"}),
      ElementsAre("language_model.lm_head 128256x4096", "transformer.h.0.attn.q_proj 4096x4096",
                  "transformer.h.1.attn.q_proj 4096x4096"));
}

struct BadGeometry {
  const char* field;
  std::function<void(ModelGeometry&)> spoil;
  std::vector<std::string> targets = {"q_proj", "down_proj"};
};

TEST(ModelShapesTest, WhatIsWrongIsNamed) {
  const std::vector<BadGeometry> table = {
      {"geometry.hidden_size", [](auto& g) { g.hidden_size = 0; }},
      {"geometry.hidden_size", [](auto& g) { g.hidden_size = -1; }},
      {"geometry.hidden_size", [](auto& g) { g.hidden_size = int64_t{1} << 40; }},
      {"geometry.intermediate_size", [](auto& g) { g.intermediate_size = 0; }},
      {"geometry.intermediate_size", [](auto& g) { g.intermediate_size = -5; }, {"q_proj"}},
      {"geometry.num_layers", [](auto& g) { g.num_layers = 0; }},
      {"geometry.num_layers", [](auto& g) { g.num_layers = 1'000'000; }},
      {"geometry.num_attention_heads", [](auto& g) { g.num_attention_heads = 0; }},
      {"geometry.num_key_value_heads", [](auto& g) { g.num_key_value_heads = 5; }},
      {"geometry.head_dim", [](auto& g) { g.num_attention_heads = 24; }},
      {"geometry.head_dim", [](auto& g) { g.head_dim = 0; }},
      {"geometry.vocab_size", [](auto& g) { g.vocab_size.reset(); }, {"lm_head"}},
      {"geometry.vocab_size", [](auto& g) { g.vocab_size = 0; }, {"embed_tokens"}},
      {"target_modules", [](auto&) {}, {}},
      {"target_modules[1]", [](auto&) {}, {"q_proj", "qproj"}},
      {"target_modules[1]", [](auto&) {}, {"q_proj", "q_proj"}},
      {"geometry.path_templates", [](auto& g) { g.path_templates["x_proj"] = "a.{layer}"; }},
      {"geometry.path_templates", [](auto& g) { g.path_templates["q_proj"] = "a.q_proj"; }},
      {"geometry.path_templates", [](auto& g) { g.path_templates["q_proj"] = "a.{block}.q"; }},
      {"geometry.path_templates", [](auto& g) { g.path_templates["q_proj"] = "a..{layer}"; }},
      {"geometry.path_templates", [](auto& g) { g.path_templates["q_proj"] = ""; }},
      {"geometry.path_templates",
       [](auto& g) { g.path_templates["q_proj"] = "m.{layer}.lora_A.weight.lora_B"; }},
      {"geometry.path_templates",
       [](auto& g) { g.path_templates["q_proj"] = "model.layers.{layer}.mlp.down_proj"; }},
  };
  for (size_t i = 0; i < table.size(); ++i) {
    SCOPED_TRACE(fmt::format("row {}: {}", i, table[i].field));
    ModelGeometry geometry = Llama();
    table[i].spoil(geometry);
    const absl::Status status = ModulesOf(geometry, table[i].targets).status();
    EXPECT_THAT(status, HasReason(Reason::kInvalidField));
    EXPECT_THAT(status, HasErrorMetadata("field", table[i].field));
  }
}

TEST(ModelShapesTest, ZeroSizesCanBeAllowed) {
  const auto modules = ModulesOf({}, {"q_proj", "down_proj"}, ZeroSizes::kAllowed);
  ASSERT_TRUE(modules.ok()) << modules.status();
  EXPECT_THAT(*modules, ElementsAre());
  ModelGeometry geometry = Llama();
  geometry.hidden_size = 0;
  const auto empty = ModulesOf(geometry, {"q_proj"}, ZeroSizes::kAllowed);
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_EQ(empty->at(0).in_features, 0);
  geometry.hidden_size = -1;
  EXPECT_THAT(ModulesOf(geometry, {"q_proj"}, ZeroSizes::kAllowed).status(),
              HasReason(Reason::kInvalidField));
}

}  // namespace
}  // namespace adapterd
