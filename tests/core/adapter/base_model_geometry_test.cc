#include "core/adapter/base_model_geometry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kFile[] = "m/config.json";

BaseGeometry Parse(std::string_view text) {
  ProblemList problems;
  const auto geometry = ParseBaseGeometry(text, kFile, problems);
  EXPECT_TRUE(geometry.has_value()) << problems.ToStatus();
  EXPECT_THAT(problems.items(), IsEmpty());
  return geometry.value_or(BaseGeometry());
}

TEST(BaseGeometryTest, ReadsEveryField) {
  const BaseGeometry geometry = Parse(R"({
      "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
      "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "num_hidden_layers": 3,
      "intermediate_size": 160, "tie_word_embeddings": false, "scale_embedding": true,
      "hidden_size_per_layer_input": 8, "id2label": {"0": "LABEL_0"}})");
  EXPECT_EQ(geometry.model_type, "llama");
  EXPECT_EQ(geometry.text_model_type, "llama");
  EXPECT_EQ(geometry.hidden_size, 64);
  EXPECT_EQ(geometry.num_attention_heads, 4);
  EXPECT_EQ(geometry.num_key_value_heads, 2);
  EXPECT_EQ(geometry.head_dim, 16);
  EXPECT_EQ(geometry.vocab_size, 128);
  EXPECT_EQ(geometry.num_hidden_layers, 3);
  EXPECT_EQ(geometry.intermediate_size, 160);
  EXPECT_EQ(geometry.hidden_size_per_layer_input, 8);
  EXPECT_EQ(geometry.tie_word_embeddings, false);
  EXPECT_EQ(geometry.scale_embedding, true);
}

TEST(BaseGeometryTest, EveryFieldIsOptional) {
  const BaseGeometry geometry =
      Parse(R"({"num_attention_heads": null, "head_dim": null, "text_config": null})");
  EXPECT_EQ(geometry.model_type, "");
  EXPECT_EQ(geometry.hidden_size, std::nullopt);
  EXPECT_EQ(geometry.num_attention_heads, std::nullopt);
  EXPECT_EQ(geometry.num_key_value_heads, std::nullopt);
  EXPECT_EQ(geometry.head_dim, std::nullopt);
  EXPECT_EQ(geometry.tie_word_embeddings, std::nullopt);
}

TEST(BaseGeometryTest, OtherNamesAndDefaults) {
  const BaseGeometry gpt2 =
      Parse(R"({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 3, "n_inner": null})");
  EXPECT_EQ(gpt2.hidden_size, 8);
  EXPECT_EQ(gpt2.num_attention_heads, 2);
  EXPECT_EQ(gpt2.num_key_value_heads, 2);
  EXPECT_EQ(gpt2.num_hidden_layers, 3);
  EXPECT_EQ(gpt2.intermediate_size, std::nullopt);
  EXPECT_EQ(Parse(R"({"d_model": 16})").hidden_size, 16);
  EXPECT_EQ(Parse(R"({"num_attention_heads": 8, "num_key_value_heads": null})").num_key_value_heads,
            8);
}

TEST(BaseGeometryTest, TheTextModelOfAMultimodalOneWins) {
  const BaseGeometry geometry = Parse(R"({
      "model_type": "gemma3", "hidden_size": 1, "vocab_size": 9, "num_attention_heads": 3,
      "num_key_value_heads": 3, "tie_word_embeddings": false,
      "text_config": {"model_type": "gemma3_text", "hidden_size": 4, "num_attention_heads": 8,
                      "tie_word_embeddings": true},
      "vision_config": {"hidden_size": 5}})");
  EXPECT_EQ(geometry.model_type, "gemma3");
  EXPECT_EQ(geometry.text_model_type, "gemma3_text");
  EXPECT_EQ(geometry.hidden_size, 4);
  EXPECT_EQ(geometry.vocab_size, 9);
  EXPECT_EQ(geometry.num_attention_heads, 8);
  EXPECT_EQ(geometry.num_key_value_heads, 8);  // not the other model's 3
  EXPECT_EQ(geometry.tie_word_embeddings, false);
  EXPECT_EQ(Parse(R"({"model_type": "a", "text_config": {}})").text_model_type, "a");
  EXPECT_EQ(Parse(R"({"text_config": {"tie_word_embeddings": true}})").tie_word_embeddings, true);
  EXPECT_EQ(
      Parse(R"({"num_attention_heads": 6, "text_config": {"vocab_size": 1}})").num_key_value_heads,
      6);
}

TEST(BaseGeometryTest, OneSizeALayer) {
  EXPECT_EQ(Parse(R"({"intermediate_size": [5, 5, 5]})").intermediate_size, 5);
  EXPECT_EQ(Parse(R"({"intermediate_size": [5, 6]})").intermediate_size, std::nullopt);
  EXPECT_EQ(Parse(R"({"intermediate_size": []})").intermediate_size, std::nullopt);
  // Heads that differ say nothing about key-value heads.
  EXPECT_EQ(
      Parse(R"({"num_attention_heads": 4, "num_key_value_heads": [1, 2]})").num_key_value_heads,
      std::nullopt);
}

TEST(BaseGeometryTest, NonFiniteNumbersElsewhereAreFine) {
  const BaseGeometry geometry = Parse(
      R"({"time_step_limit": [0.0, Infinity, -Infinity], "x": NaN, "hidden_size": 2,
          "text": "say \"NaN\", Infinity \\", "y": [NaN]})");
  EXPECT_EQ(geometry.hidden_size, 2);
}

struct Bad {
  const char* text;
  const char* field;
  const char* message;
};

TEST(BaseGeometryTest, RefusesWrongTypesAndSizes) {
  const Bad cases[] = {
      {R"({"hidden_size": "64"})", "hidden_size", "hidden_size must be a whole number"},
      {R"({"hidden_size": 64.5})", "hidden_size", "found 64.5"},
      {R"({"hidden_size": 0})", "hidden_size", "from 1 to 1000000000, found 0"},
      {R"({"hidden_size": -1})", "hidden_size", "found -1"},
      {R"({"hidden_size": 1000000001})", "hidden_size", "found 1000000001"},
      {R"({"hidden_size": 1e300})", "hidden_size", "found 1e+300"},
      {R"({"hidden_size": 123456789012345678901234567890})", "hidden_size", "must be a whole"},
      {R"({"hidden_size": NaN})", "hidden_size", "found \"NaN\""},
      {R"({"hidden_size": -Infinity})", "hidden_size", "found \"-Infinity\""},
      {R"({"hidden_size": {}})", "hidden_size", "must be a whole number"},
      {R"({"vocab_size": true})", "vocab_size", "found true"},
      {R"({"intermediate_size": [5, "5"]})", "intermediate_size", "found \"5\""},
      {R"({"num_attention_heads": 0})", "num_attention_heads", "found 0"},
      {R"({"num_key_value_heads": 0})", "num_key_value_heads", "found 0"},
      {R"({"head_dim": 1.5})", "head_dim", "found 1.5"},
      {R"({"num_hidden_layers": -2})", "num_hidden_layers", "found -2"},
      {R"({"model_type": 3})", "model_type", "model_type must be a string"},
      {R"({"tie_word_embeddings": 1})", "tie_word_embeddings", "true, false or null, found 1"},
      {R"({"scale_embedding": "no"})", "scale_embedding", "true, false or null"},
      {R"({"text_config": []})", "text_config", "text_config must be an object"},
      {R"({"text_config": {"vocab_size": "x"}})", "vocab_size", "vocab_size must be"},
      {"", "", "not JSON"},
      {"[]", "", "not a JSON object"},
      {R"({"hidden_size": 64)", "", "not JSON"},
      {R"({"hidden_size": NaNs})", "", "not JSON"},
  };
  for (const Bad& bad : cases) {
    ProblemList problems;
    EXPECT_EQ(ParseBaseGeometry(bad.text, kFile, problems), std::nullopt) << bad.text;
    ASSERT_EQ(problems.items().size(), 1u) << bad.text;
    const Problem& problem = problems.items()[0];
    EXPECT_EQ(problem.reason, Reason::kMalformedConfig) << bad.text;
    EXPECT_EQ(problem.file, kFile) << bad.text;
    EXPECT_EQ(problem.field, bad.field) << bad.text;
    EXPECT_THAT(problem.message, HasSubstr(bad.message)) << bad.text;
  }
}

TEST(BaseGeometryTest, ConfigsOfRealModels) {
  const auto read = [](const std::string& base) {
    return Parse(ReadFile(ADAPTERD_FIXTURES "/peft/bases/" + base + "/config.json"));
  };
  const BaseGeometry llama = read("tiny-llama");
  EXPECT_EQ(llama.num_key_value_heads, 2);
  EXPECT_EQ(llama.head_dim, 16);
  EXPECT_EQ(llama.tie_word_embeddings, false);
  EXPECT_EQ(read("tiny-llama-tied").tie_word_embeddings, true);
  const BaseGeometry gpt2 = read("tiny-gpt2");
  EXPECT_EQ(gpt2.hidden_size, 64);
  EXPECT_EQ(gpt2.num_key_value_heads, 4);
  EXPECT_TRUE(IsConv1dArchitecture(gpt2));
  EXPECT_FALSE(IsConv1dArchitecture(llama));
  EXPECT_EQ(read("tiny-bert").num_key_value_heads, 4);
  EXPECT_EQ(read("tiny-mixtral").head_dim, std::nullopt);
  EXPECT_EQ(read("tiny-qwen2").intermediate_size, 160);
}

struct Scale {
  const char* config;
  const char* path;
  std::optional<double> scale;
};

TEST(EmbeddingScaleTest, FollowsTheArchitecture) {
  const double kRoot = std::sqrt(2304.0);
  const std::string sizes = R"(, "hidden_size": 2304, "hidden_size_per_layer_input": 256})";
  const Scale cases[] = {
      {R"({"model_type": "llama")", "model.embed_tokens", 1},
      {R"({"model_type": "qwen3")", "model.embed_tokens", 1},
      {R"({"model_type": "gemma")", "model.embed_tokens", kRoot},
      {R"({"model_type": "gemma2")", "model.embed_tokens", kRoot},
      {R"({"model_type": "gemma2")", "model.position", 1},
      {R"({"model_type": "gemma3_text")", "model.embed_tokens", kRoot},
      {R"({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"})",
       "model.language_model.embed_tokens", kRoot},
      {R"({"model_type": "gemma3", "text_config": {})", "model.language_model.embed_tokens", kRoot},
      {R"({"model_type": "paligemma", "text_config": {"model_type": "gemma"})",
       "model.language_model.embed_tokens", kRoot},
      {R"({"model_type": "gemma3n_text")", "model.embed_tokens", kRoot},
      {R"({"model_type": "gemma3n_text")", "model.embed_tokens_per_layer", 16},
      {R"({"model_type": "gemma4_text")", "model.embed_tokens_per_layer", 16},
      {R"({"model_type": "t5gemma")", "model.encoder.embed_tokens", 1},
      {R"({"model_type": "gemma9")", "model.embed_tokens", std::nullopt},
      {R"({"model_type": "bart", "scale_embedding": true)", "model.shared", kRoot},
      {R"({"model_type": "bart", "scale_embedding": true)", "model.decoder.embed_tokens", kRoot},
      {R"({"model_type": "bart", "scale_embedding": true)", "model.decoder.embed_positions", 1},
      {R"({"model_type": "bart", "scale_embedding": false)", "model.shared", 1},
      {R"({"model_type": "bart")", "model.shared", 1},
      {R"({"model_type": "mbart", "scale_embedding": true)", "model.shared", kRoot},
      {R"({"model_type": "m2m_100")", "model.shared", kRoot},
      {R"({"model_type": "m2m_100", "scale_embedding": false)", "model.shared", 1},
      {R"({"model_type": "marian", "scale_embedding": true)", "model.shared", 1},
      {R"({"model_type": "whisper", "scale_embedding": true)", "model.decoder.embed_tokens", 1},
      {R"({"model_type": "new", "scale_embedding": true)", "model.shared", std::nullopt},
      {R"({"model_type": "new", "scale_embedding": false)", "model.shared", 1},
  };
  for (const Scale& expected : cases) {
    const BaseGeometry geometry = Parse(expected.config + sizes);
    EXPECT_EQ(EmbeddingScale(geometry, expected.path), expected.scale)
        << expected.config << " " << expected.path;
  }
}

TEST(EmbeddingScaleTest, NeedsTheSize) {
  EXPECT_EQ(EmbeddingScale(Parse(R"({"model_type": "gemma2"})"), "embed_tokens"), std::nullopt);
  EXPECT_EQ(EmbeddingScale(Parse(R"({"model_type": "m2m_100"})"), "shared"), std::nullopt);
  EXPECT_EQ(EmbeddingScale(Parse(R"({"model_type": "gemma3n_text", "hidden_size": 4,
                                     "hidden_size_per_layer_input": 0})"),
                           "embed_tokens_per_layer"),
            std::nullopt);
  EXPECT_EQ(EmbeddingScale(BaseGeometry(), "embed_tokens"), 1);
}

}  // namespace
}  // namespace adapterd
