#include "core/adapter/base_model_binding.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "core/adapter/base_model.h"
#include "tests/testing/checkpoint_builder.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

ModuleInfo Linear(const std::string& path, int64_t in, int64_t out) {
  ModuleInfo module;
  module.path = path;
  module.in_features = in;
  module.out_features = out;
  return module;
}

ModuleInfo Embedding(const std::string& path, int64_t tokens, int64_t out) {
  ModuleInfo module = Linear(path, tokens, out);
  module.kind = ModuleKind::kEmbedding;
  return module;
}

ModuleInfo Replacement(const std::string& path, Shape shape) {
  ModuleInfo module;
  module.path = path;
  module.kind = ModuleKind::kReplacement;
  module.weight_shape = std::move(shape);
  return module;
}

class BindingTest : public ::testing::Test {
 protected:
  BindingTest() {
    Config(R"({"model_type": "llama"})");
    checkpoint_.Add("model.embed_tokens.weight", {10, 4}, DType::kBF16)
        .Add("model.layers.0.q.weight", {6, 4})
        .Add("model.layers.0.q.bias", {6})
        .Add("model.layers.1.q.weight", {6, 4}, DType::kF16)
        .Add("model.layers.1.o.weight", {4, 4})
        .Add("model.norm.weight", {4});
  }

  void Config(std::string_view json) { temp_.Write("m/config.json", json); }

  std::vector<BaseBinding> Bind(const std::vector<ModuleInfo>& modules,
                                const BindOptions& options = {}) {
    checkpoint_.Write(temp_, "m");
    problems_ = ProblemList();
    const auto base = BaseModel::Open(*SourceRoots::Open({{"", temp_.path()}}), "m", problems_);
    EXPECT_NE(base, nullptr) << problems_.ToStatus();
    if (base == nullptr) return {};
    auto bindings = BindToBase(modules, *base, options, problems_);
    EXPECT_THAT(bindings, SizeIs(modules.size()));
    return bindings;
  }

  // The one error is a mismatch with this in its message.
  void ExpectMismatch(std::string_view message) {
    EXPECT_THAT(problems_.ToStatus(), HasReason(Reason::kBaseModelMismatch));
    EXPECT_THAT(problems_.ToStatus(), HasMessage(HasSubstr(std::string(message))));
    EXPECT_THAT(problems_.ToStatus(), HasMessage(::testing::Not(HasSubstr(" more error"))));
  }

  const TempDir temp_;
  CheckpointBuilder checkpoint_;
  ProblemList problems_;
};

TEST_F(BindingTest, WeightsAndBiases) {
  const auto bindings = Bind({Linear("model.layers.0.q", 4, 6), Linear("model.layers.1.q", 4, 6),
                              Embedding("model.embed_tokens", 10, 4)});
  EXPECT_THAT(problems_.items(), IsEmpty());
  ASSERT_TRUE(bindings[0].weight && bindings[1].weight && bindings[2].weight);
  EXPECT_EQ(bindings[0].weight->tensor, "model.layers.0.q.weight");
  EXPECT_THAT(bindings[0].weight->shape, ElementsAre(6, 4));
  EXPECT_EQ(bindings[0].weight->layout, BaseLayout::kOutIn);
  ASSERT_TRUE(bindings[0].bias);
  EXPECT_EQ(bindings[0].bias->tensor, "model.layers.0.q.bias");
  EXPECT_EQ(bindings[1].weight->dtype, DType::kF16);
  EXPECT_FALSE(bindings[1].bias);
  EXPECT_EQ(bindings[2].weight->dtype, DType::kBF16);
  EXPECT_EQ(bindings[2].weight->layout, BaseLayout::kInOut);
  EXPECT_EQ(bindings[2].embedding_scale, 1);
}

TEST_F(BindingTest, BiasesAreFoundBesideTheirWeights) {
  // The weight is found without the path's first component; another bias has it.
  checkpoint_.Add("layers.9.q.weight", {6, 4}).Add("layers.9.q.bias", {6});
  checkpoint_.Add("x.layers.9.q.bias", {6});
  const auto bindings = Bind({Linear("x.layers.9.q", 4, 6)});
  ASSERT_TRUE(bindings[0].bias);
  EXPECT_EQ(bindings[0].bias->tensor, "layers.9.q.bias");
}

TEST_F(BindingTest, Conv1dByConfigOrArchitecture) {
  const std::vector<ModuleInfo> modules = {Linear("model.layers.1.o", 4, 4),
                                           Linear("model.layers.0.q", 6, 4)};
  Bind(modules);
  ExpectMismatch("should be [4, 6], found F32 [6, 4]");
  const auto bindings = Bind(modules, {.fan_in_fan_out = true, .layer_replication = {}});
  EXPECT_THAT(problems_.items(), SizeIs(1));                  // the bias of 6
  EXPECT_EQ(bindings[0].weight->layout, BaseLayout::kOutIn);  // Llama has nothing but nn.Linear
  EXPECT_EQ(bindings[1].weight->layout, BaseLayout::kInOut);  // the shape says so
}

TEST_F(BindingTest, WrongShapesNameTensorExpectedAndFound) {
  const auto bindings = Bind({Linear("model.layers.0.q", 4, 7), Linear("model.layers.1.q", 4, 6)});
  ExpectMismatch(
      "module \"model.layers.0.q\": the base model's tensor \"model.layers.0.q.weight\" "
      "should be [7, 4], found F32 [6, 4]");
  const absl::Status status = problems_.ToStatus();
  EXPECT_THAT(status, HasErrorMetadata("module", "model.layers.0.q"));
  EXPECT_THAT(status, HasErrorMetadata("tensor", "model.layers.0.q.weight"));
  EXPECT_THAT(status, HasErrorMetadata("file", "m/model.safetensors"));
  EXPECT_THAT(status, HasErrorMetadata("expected", "[7, 4]"));
  EXPECT_THAT(status, HasErrorMetadata("actual", "F32 [6, 4]"));
  EXPECT_FALSE(bindings[0].weight);
  EXPECT_TRUE(bindings[1].weight);
}

TEST_F(BindingTest, QuantizedWeightsDoNotFit) {
  checkpoint_.Add("model.layers.2.q.weight", {12, 1}, DType::kU8);
  Bind({Linear("model.layers.2.q", 4, 6)});
  ExpectMismatch("should be [6, 4], found U8 [12, 1]");
}

TEST_F(BindingTest, AllWrongShapesAreTold) {
  Bind({Linear("model.layers.0.q", 4, 7), Linear("model.layers.1.q", 4, 7)});
  EXPECT_THAT(problems_.items(), SizeIs(2));
}

TEST_F(BindingTest, NothingFoundIsAnError) {
  Bind({Linear("transformer.h.0.attn", 4, 6), Linear("transformer.h.1.attn", 4, 6)});
  ExpectMismatch("none of the adapter's 2 modules can be told in the base model \"m\"");
  EXPECT_THAT(problems_.ToStatus(), HasErrorMetadata("field", "base_checkpoint"));
  EXPECT_THAT(problems_.items(), SizeIs(1));
  Bind({});
  EXPECT_THAT(problems_.items(), IsEmpty());
}

TEST_F(BindingTest, SomeNotFoundIsAWarning) {
  std::vector<ModuleInfo> modules = {Linear("model.layers.0.q", 4, 6)};
  for (int i = 0; i < 7; ++i) {
    modules.push_back(Linear(fmt::format("model.visual.{}.q", i), 4, 6));
  }
  const auto bindings = Bind(modules);
  ASSERT_THAT(problems_.items(), SizeIs(1));
  const Problem& problem = problems_.items()[0];
  EXPECT_EQ(problem.severity, Severity::kWarning);
  EXPECT_EQ(problem.reason, Reason::kBaseModelMismatch);
  EXPECT_EQ(problem.module, "model.visual.0.q");
  EXPECT_THAT(problem.message, AllOf(HasSubstr("not found in the base model"),
                                     HasSubstr("\"model.visual.4.q\" and 2 more")));
  EXPECT_TRUE(bindings[0].weight);
  EXPECT_FALSE(bindings[1].weight);
}

TEST_F(BindingTest, WhatCannotBeToldIsAWarning) {
  checkpoint_.Add("text.blocks.0.q.weight", {6, 4}).Add("vision.blocks.0.q.weight", {6, 4});
  const auto bindings = Bind({Linear("blocks.0.q", 4, 6), Linear("model.layers.0.q", 4, 6)});
  ASSERT_THAT(problems_.items(), SizeIs(1));
  EXPECT_EQ(problems_.items()[0].severity, Severity::kWarning);
  EXPECT_THAT(problems_.items()[0].message, HasSubstr("more than one tensor"));
  EXPECT_FALSE(bindings[0].weight);
}

TEST_F(BindingTest, TiedHeads) {
  const std::vector<ModuleInfo> head = {Linear("lm_head", 4, 10)};
  for (const char* config : {R"({"tie_word_embeddings": true})", "{}"}) {
    Config(config);
    const auto bindings = Bind(head);
    EXPECT_THAT(problems_.items(), IsEmpty()) << config;
    ASSERT_TRUE(bindings[0].weight) << config;
    EXPECT_EQ(bindings[0].weight->tensor, "model.embed_tokens.weight");
    EXPECT_EQ(bindings[0].weight->layout, BaseLayout::kOutIn);
    EXPECT_FALSE(bindings[0].bias);
  }
  Config(R"({"tie_word_embeddings": false})");
  Bind(head);
  ExpectMismatch("none of the adapter's 1 modules");
  // A head of its own is never overlooked, and a bias of its own neither.
  Config(R"({"tie_word_embeddings": true})");
  checkpoint_.Add("lm_head.bias", {10}).Add("model.embed_tokens.bias", {3});
  auto bindings = Bind(head);
  ASSERT_TRUE(bindings[0].bias);
  EXPECT_EQ(bindings[0].bias->tensor, "lm_head.bias");
  checkpoint_.Add("lm_head.weight", {10, 4});
  bindings = Bind(head);
  EXPECT_EQ(bindings[0].weight->tensor, "lm_head.weight");
}

TEST_F(BindingTest, EmbeddingScales) {
  Config(R"({"model_type": "gemma2", "hidden_size": 4})");
  EXPECT_EQ(Bind({Embedding("model.embed_tokens", 10, 4)})[0].embedding_scale, 2);
  EXPECT_EQ(Bind({Linear("model.layers.0.q", 4, 6)})[0].embedding_scale, 1);
  Config(R"({"model_type": "gemma9", "hidden_size": 4})");
  Bind({Embedding("model.embed_tokens", 10, 4)});
  EXPECT_THAT(problems_.ToStatus(), HasReason(Reason::kUnsupportedAdapter));
  EXPECT_THAT(problems_.ToStatus(), HasMessage(HasSubstr("\"gemma9\"")));
  EXPECT_THAT(problems_.ToStatus(), HasErrorMetadata("module", "model.embed_tokens"));
  Bind({Linear("model.layers.0.q", 4, 6)});
  EXPECT_THAT(problems_.items(), IsEmpty());
}

TEST_F(BindingTest, AnEmbeddingWithoutConfigIsAWarning) {
  std::filesystem::remove(temp_ / "m/config.json");
  const auto bindings = Bind({Embedding("model.embed_tokens", 10, 4)});
  EXPECT_EQ(bindings[0].embedding_scale, 1);
  ASSERT_THAT(problems_.items(), SizeIs(1));
  EXPECT_EQ(problems_.items()[0].severity, Severity::kWarning);
  EXPECT_THAT(problems_.items()[0].message, HasSubstr("has no config.json"));
}

TEST_F(BindingTest, ReplacementsHaveTheShapeOfWhatTheyReplace) {
  auto bindings = Bind({Replacement("model.norm", {4})});
  EXPECT_THAT(problems_.items(), IsEmpty());
  EXPECT_EQ(bindings[0].weight->tensor, "model.norm.weight");
  Bind({Replacement("model.norm", {5})});
  ExpectMismatch("\"model.norm.weight\" should be [5], found F32 [4]");
  Bind({Replacement("model.layers.1.o", {6, 4})});
  ExpectMismatch("should be [6, 4], found F32 [4, 4]");
  Bind({Replacement("model.embed_tokens", {9, 4})});
  ExpectMismatch("should be [9, 4], found BF16 [10, 4]");
  Bind({Replacement("model.embed_tokens", {12, 5})});
  ExpectMismatch("should be [12, 5]");
}

TEST_F(BindingTest, AResizedVocabularyIsAWarning) {
  checkpoint_.Add("head.weight", {10, 4});
  Config(R"({"model_type": "new", "vocab_size": 10})");
  const auto bindings = Bind({Replacement("model.embed_tokens", {12, 4}),
                              Replacement("lm_head", {12, 4}), Replacement("head", {12, 4})});
  ASSERT_THAT(problems_.items(), SizeIs(1));
  EXPECT_EQ(problems_.items()[0].severity, Severity::kWarning);
  EXPECT_THAT(problems_.items()[0].message,
              HasSubstr("more rows than the base model's vocabulary has: "
                        "\"model.embed_tokens\", \"lm_head\", \"head\""));
  EXPECT_TRUE(bindings[0].weight);
}

TEST_F(BindingTest, TokenIdsAreRowsOfTheEmbedding) {
  ModuleInfo tokens = Replacement("model.embed_tokens", {3, 4});
  tokens.token_ids = {9, 0, 4};
  const auto bindings = Bind({tokens});
  EXPECT_THAT(problems_.items(), IsEmpty());
  EXPECT_EQ(bindings[0].weight->tensor, "model.embed_tokens.weight");
  tokens.token_ids = {9, 10, 4};
  Bind({tokens});
  ExpectMismatch("token id 10 is not one of the 10 rows");
  EXPECT_THAT(problems_.ToStatus(), HasErrorMetadata("expected", "from 0 to 9"));
  tokens.token_ids = {9, -1, 4};
  Bind({tokens});
  ExpectMismatch("token id -1 is not");
  tokens.weight_shape = {3, 5};
  Bind({tokens});
  ExpectMismatch("should be [tokens, 5], found BF16 [10, 4]");
}

TEST_F(BindingTest, ReplacedBiases) {
  ModuleInfo module = Linear("model.layers.0.q", 4, 6);
  module.replaces_bias = true;
  EXPECT_TRUE(Bind({module})[0].bias);
  module.path = "model.layers.1.q";
  Bind({module});
  ExpectMismatch("replaces its bias, but the base model's module has none");

  ModuleInfo alone = Replacement("model.layers.0.q", {});
  alone.out_features = 6;
  alone.replaces_bias = true;
  const auto bindings = Bind({alone});
  EXPECT_THAT(problems_.items(), IsEmpty());
  EXPECT_FALSE(bindings[0].weight);
  EXPECT_EQ(bindings[0].bias->tensor, "model.layers.0.q.bias");
  alone.out_features = 7;
  Bind({alone});
  ExpectMismatch("\"model.layers.0.q.bias\" should be [7], found F32 [6]");
}

TEST_F(BindingTest, BiasesOfAnotherShapeAreRefused) {
  checkpoint_.Add("model.layers.1.q.bias", {5});
  Bind({Linear("model.layers.1.q", 4, 6)});
  ExpectMismatch("\"model.layers.1.q.bias\" should be [6], found F32 [5]");
}

TEST_F(BindingTest, Experts) {
  checkpoint_.Add("model.layers.0.experts.up", {3, 8, 4});
  ModuleInfo experts = Linear("model.layers.0.experts.up", 4, 8);
  experts.kind = ModuleKind::kExperts;
  experts.parameter = "up";
  experts.experts = 3;
  auto bindings = Bind({experts});
  EXPECT_THAT(problems_.items(), IsEmpty());
  EXPECT_EQ(bindings[0].weight->tensor, "model.layers.0.experts.up");
  EXPECT_EQ(bindings[0].weight->layout, BaseLayout::kOutIn);
  experts.in_features = 8;
  experts.out_features = 4;
  bindings = Bind({experts});
  EXPECT_EQ(bindings[0].weight->layout, BaseLayout::kInOut);
  experts.experts = 4;
  Bind({experts});
  ExpectMismatch("should be [4, 4, 8] or [4, 8, 4], found F32 [3, 8, 4]");
}

TEST_F(BindingTest, ReplicatedLayers) {
  Config(R"({"model_type": "llama", "num_hidden_layers": 2})");
  const BindOptions options = {.fan_in_fan_out = false, .layer_replication = {{0, 2}, {0, 1}}};
  const auto bindings =
      Bind({Linear("model.layers.1.q", 4, 6), Linear("model.layers.2.q", 4, 6)}, options);
  EXPECT_THAT(problems_.items(), IsEmpty());
  EXPECT_EQ(bindings[0].weight->tensor, "model.layers.1.q.weight");
  EXPECT_EQ(bindings[1].weight->tensor, "model.layers.0.q.weight");
  EXPECT_EQ(bindings[1].bias->tensor, "model.layers.0.q.bias");
  Bind({Linear("model.layers.3.q", 4, 6)}, options);
  ExpectMismatch("module \"model.layers.3.q\": its layer is beyond the stack");
  Bind({Linear("model.layers.0.q", 4, 6)},
       {.fan_in_fan_out = false, .layer_replication = {{0, 2}, {1, 3}}});
  ExpectMismatch("layer_replication takes layers [1, 3) of a base model that has 2");
  EXPECT_THAT(problems_.ToStatus(), HasErrorMetadata("field", "layer_replication"));
}

}  // namespace
}  // namespace adapterd
