#include "core/adapter/base_model_names.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/testing/checkpoint_builder.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

TEST(OriginalLayerPathTest, CountsInTheReplicatedStack) {
  // 0 1 2 3 | 2 3 | 0
  const std::vector<LayerRange> ranges = {{0, 4}, {2, 4}, {0, 1}};
  const int64_t originals[] = {0, 1, 2, 3, 2, 3, 0};
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(OriginalLayerPath(fmt::format("model.layers.{}.mlp.0.up", i), ranges),
              fmt::format("model.layers.{}.mlp.0.up", originals[i]));
  }
  EXPECT_EQ(OriginalLayerPath("model.layers.7.mlp", ranges), std::nullopt);
  EXPECT_EQ(OriginalLayerPath("lm_head", ranges), "lm_head");
  EXPECT_EQ(OriginalLayerPath("layers.4", ranges), "layers.2");
  EXPECT_EQ(OriginalLayerPath("5.q", ranges), "3.q");
  EXPECT_EQ(OriginalLayerPath("h2o.h.5.q", ranges), "h2o.h.3.q");
  EXPECT_EQ(OriginalLayerPath("h.5.q", {}), "h.5.q");
}

TEST(VocabularyModuleTest, IsToldByTheLastComponent) {
  for (const char* path : {"lm_head", "model.embed_tokens", "transformer.wte", "embed_out",
                           "bert.embeddings.word_embeddings", "shared", "gpt_neox.embed_in"}) {
    EXPECT_TRUE(IsVocabularyModule(path)) << path;
  }
  for (const char* path : {"score", "model.norm", "lm_head.dense", "my_lm_head", ""}) {
    EXPECT_FALSE(IsVocabularyModule(path)) << path;
  }
}

class BaseNamesTest : public ::testing::Test {
 protected:
  BaseNamesTest() = default;

  // What `path` finds among `tensors`.
  std::vector<std::string> Find(const std::vector<std::string>& tensors, const std::string& path,
                                const std::string& suffix = ".weight") {
    const Checkpoint checkpoint = Made(tensors);
    return NamesOf(BaseNames(checkpoint).Find(path, suffix));
  }
  std::vector<std::string> FindTied(const std::vector<std::string>& tensors,
                                    const std::string& path) {
    const Checkpoint checkpoint = Made(tensors);
    return NamesOf(BaseNames(checkpoint).FindTied(path));
  }

 private:
  Checkpoint Made(const std::vector<std::string>& tensors) {
    CheckpointBuilder builder;
    for (const std::string& name : tensors) builder.Add(name, {1});
    builder.Write(temp_, "m");
    return *Checkpoint::Open(*SourceRoots::Open({{"", temp_.path()}})->OpenFolder("m"));
  }
  static std::vector<std::string> NamesOf(const std::vector<const CheckpointTensor*>& tensors) {
    std::vector<std::string> names;
    for (const CheckpointTensor* tensor : tensors) names.push_back(tensor->name);
    return names;
  }

  const TempDir temp_;
};

TEST_F(BaseNamesTest, TheVeryNameWins) {
  EXPECT_THAT(Find({"a.b.weight", "b.weight", "c.a.b.weight"}, "a.b"), ElementsAre("a.b.weight"));
  EXPECT_THAT(Find({"a.b", "a.b.weight"}, "a.b", ""), ElementsAre("a.b"));
}

TEST_F(BaseNamesTest, WithoutTheFirstComponentAndWithAnother) {
  EXPECT_THAT(Find({"layers.0.q.weight"}, "model.layers.0.q"), ElementsAre("layers.0.q.weight"));
  EXPECT_THAT(Find({"model.layers.0.q.weight", "lm_head.weight"}, "layers.0.q"),
              ElementsAre("model.layers.0.q.weight"));
  EXPECT_THAT(Find({"language_model.lm_head.weight"}, "lm_head"),
              ElementsAre("language_model.lm_head.weight"));
  EXPECT_THAT(Find({"layers.0.experts.up"}, "model.layers.0.experts.up", ""),
              ElementsAre("layers.0.experts.up"));
}

TEST_F(BaseNamesTest, TheLanguageModelOfAMultimodalOne) {
  const char kNew[] = "model.language_model.layers.0.q";
  EXPECT_THAT(Find({"model.layers.0.q.weight"}, kNew), ElementsAre("model.layers.0.q.weight"));
  EXPECT_THAT(Find({"language_model.model.layers.0.q.weight"}, kNew),
              ElementsAre("language_model.model.layers.0.q.weight"));
  EXPECT_THAT(Find({std::string(kNew) + ".weight"}, "model.layers.0.q"),
              ElementsAre(std::string(kNew) + ".weight"));
  EXPECT_THAT(Find({std::string(kNew) + ".weight"}, "language_model.model.layers.0.q"),
              ElementsAre(std::string(kNew) + ".weight"));
}

TEST_F(BaseNamesTest, WhatIsOnlySimilarIsNotFound) {
  const std::vector<std::string> tensors = {"model.layers.10.q.weight", "model.layers.1.q.bias",
                                            "model.layers.1.qq.weight", "a.b.model.x.weight"};
  for (const char* path : {"model.layers.1.q", "layers.1.q", "layers.0.q", "q", "x", "model.x"}) {
    EXPECT_THAT(Find(tensors, path), IsEmpty()) << path;
  }
  // Not the suffix alone, whose first component would be a name.
  EXPECT_THAT(Find({"weight"}, "q"), IsEmpty());
}

TEST_F(BaseNamesTest, MoreThanOneIsAmbiguous) {
  EXPECT_THAT(Find({"text.layers.0.q.weight", "vision.layers.0.q.weight"}, "layers.0.q"),
              UnorderedElementsAre("text.layers.0.q.weight", "vision.layers.0.q.weight"));
  std::vector<std::string> many;
  for (int i = 0; i < 20; ++i) many.push_back(fmt::format("m{}.layers.0.q.weight", i));
  EXPECT_THAT(Find(many, "layers.0.q"), SizeIs(BaseNames::kMaxMatches));
}

TEST_F(BaseNamesTest, HeadsShareTheEmbedding) {
  const std::vector<std::string> llama = {"model.embed_tokens.weight", "model.norm.weight"};
  EXPECT_THAT(FindTied(llama, "lm_head"), ElementsAre("model.embed_tokens.weight"));
  EXPECT_THAT(FindTied(llama, "language_model.lm_head"), ElementsAre("model.embed_tokens.weight"));
  EXPECT_THAT(FindTied(llama, "score"), IsEmpty());
  EXPECT_THAT(FindTied(llama, "model.embed_tokens"), IsEmpty());
  EXPECT_THAT(FindTied({"transformer.wte.weight", "transformer.wpe.weight"}, "lm_head"),
              ElementsAre("transformer.wte.weight"));
  EXPECT_THAT(FindTied({"shared.weight", "decoder.embed_tokens.weight"}, "lm_head"),
              ElementsAre("shared.weight"));
  EXPECT_THAT(FindTied({"a.embed_tokens.weight", "b.embed_tokens.weight"}, "lm_head"),
              ElementsAre("a.embed_tokens.weight", "b.embed_tokens.weight"));
  EXPECT_THAT(FindTied({"model.norm.weight"}, "lm_head"), IsEmpty());
}

}  // namespace
}  // namespace adapterd
