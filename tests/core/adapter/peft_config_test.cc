#include "core/adapter/peft_config.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "core/adapter/config_json.h"
#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Optional;
using ::testing::Pair;

// `keys` go beside a valid minimum; a key that is there already comes twice, and the last counts.
std::string Json(const std::string& keys) {
  return R"({"peft_type": "LORA", "target_modules": ["q"])" + (keys.empty() ? "" : ", " + keys) +
         "}";
}

std::optional<PeftConfig> Parse(const std::string& json, ProblemList& problems) {
  return ParsePeftConfig(json, "c.json", problems);
}

TEST(PeftConfigTest, DefaultsAreThoseOfPeft) {
  ProblemList problems;
  const auto config = Parse(Json(""), problems);
  EXPECT_THAT(problems.items(), IsEmpty());
  ASSERT_TRUE(config.has_value());
  EXPECT_EQ(config->file, "c.json");
  EXPECT_THAT(config->r, Optional(8));
  EXPECT_THAT(config->lora_alpha, Optional(8.0));
  EXPECT_FALSE(config->use_rslora);
  EXPECT_EQ(config->lora_dropout, 0);
  EXPECT_EQ(config->base_model, "");
  ASSERT_TRUE(config->target_modules.has_value());
  EXPECT_FALSE(config->target_modules->is_pattern);
  EXPECT_THAT(config->target_modules->names, ElementsAre("q"));
  EXPECT_TRUE(config->exclude_modules.empty());
  EXPECT_EQ(config->layers_to_transform, std::nullopt);
  EXPECT_THAT(config->layers_pattern, IsEmpty());
  EXPECT_THAT(config->rank_pattern, Optional(IsEmpty()));
  EXPECT_THAT(config->alpha_pattern, Optional(IsEmpty()));
}

TEST(PeftConfigTest, ReadsWhatIsThere) {
  ProblemList problems;
  const auto config = Parse(
      Json(R"("base_model_name_or_path": "b", "task_type": "CAUSAL_LM", "peft_version": "0.21.2",
              "r": 16, "lora_alpha": -2.5, "use_rslora": true, "lora_dropout": 0.05,
              "target_modules": "a|b", "exclude_modules": ["x"],
              "rank_pattern": {"z": 1, "a": 2}, "alpha_pattern": {"y": 0, "b": 0.5})"),
      problems);
  EXPECT_THAT(problems.items(), IsEmpty());
  ASSERT_TRUE(config.has_value());
  EXPECT_EQ(config->base_model, "b");
  EXPECT_EQ(config->task_type, "CAUSAL_LM");
  EXPECT_EQ(config->peft_version, "0.21.2");
  EXPECT_THAT(config->r, Optional(16));
  EXPECT_THAT(config->lora_alpha, Optional(-2.5));
  EXPECT_TRUE(config->use_rslora);
  EXPECT_EQ(config->lora_dropout, 0.05);
  EXPECT_TRUE(config->target_modules->is_pattern);
  EXPECT_EQ(config->target_modules->pattern, "a|b");
  EXPECT_THAT(config->exclude_modules.names, ElementsAre("x"));
  EXPECT_THAT(config->rank_pattern, Optional(ElementsAre(Pair("z", 1), Pair("a", 2))));
  EXPECT_THAT(config->alpha_pattern, Optional(ElementsAre(Pair("y", 0), Pair("b", 0.5))));
}

TEST(PeftConfigTest, WhatChangesNothingIsAccepted) {
  for (const char* keys : {
           R"("rank_pattern": null, "alpha_pattern": null, "exclude_modules": null)",
           R"("bias": "none", "fan_in_fan_out": true, "inference_mode": true)",
           R"("init_lora_weights": true)",
           R"("init_lora_weights": false)",
           R"("init_lora_weights": null)",
           R"("init_lora_weights": "gaussian")",
           R"("init_lora_weights": "orthogonal")",
           R"("init_lora_weights": "eva")",
           R"("init_lora_weights": "mica")",
           R"("init_lora_weights": "Gaussian")",
           R"("layer_replication": [[0, 2], [1, 2]])",
           R"("eva_config": {"rho": 2.0})",
           R"("megatron_core": "megatron.core", "qalora_group_size": 16, "use_qalora": false)",
           R"("loftq_config": {"loftq_bits": 4}, "corda_config": {"a": 1})",
           R"("velora_config": {"a": 1}, "monteclora_config": {"a": 1})",
           R"("ensure_weight_tying": true, "auto_mapping": {"a": "b"}, "revision": "main")",
           R"("modules_to_save": [], "trainable_token_indices": {}, "target_parameters": [])",
           R"("use_dora": false, "lora_bias": false, "use_bdlora": null, "kasa_config": null)",
           R"("a_new_key": null, "b": false, "c": 0, "d": 0.0, "e": "", "f": [], "g": {})",
           R"("h": -0.0)",
           R"("runtime_config": null)",
           R"("lora_alpha": 0)",
           R"("r": 4, "r": 2)",
           R"("layers_to_transform": [], "layers_pattern": [])",
           R"("layers_to_transform": null, "layers_pattern": "")",
       }) {
    ProblemList problems;
    EXPECT_TRUE(Parse(Json(keys), problems).has_value());
    EXPECT_THAT(problems.items(), IsEmpty()) << keys;
  }
}

struct BadCase {
  std::string keys;
  Reason reason;
  std::string field;
  std::string message = "";
};

TEST(PeftConfigTest, WrongValuesAreNamed) {
  const Reason malformed = Reason::kMalformedConfig;
  const std::vector<BadCase> cases = {
      {R"("r": null)", malformed, "r", "found null"},
      {R"("r": 0)", malformed, "r", "found 0"},
      {R"("r": -4)", malformed, "r", "found -4"},
      {R"("r": 8.0)", malformed, "r"},
      {R"("r": "8")", malformed, "r"},
      {R"("r": true)", malformed, "r"},
      {R"("r": [8])", malformed, "r"},
      {R"("r": 1000001)", malformed, "r"},
      {R"("r": 9223372036854775808)", malformed, "r"},
      {R"("r": 99999999999999999999999999)", malformed, "r"},
      {R"("lora_alpha": null)", malformed, "lora_alpha", "must be a number, found null"},
      {R"("lora_alpha": "16")", malformed, "lora_alpha", R"(found "16")"},
      {R"("lora_alpha": true)", malformed, "lora_alpha"},
      {R"("lora_alpha": {})", malformed, "lora_alpha"},
      {R"("lora_dropout": "0.1")", malformed, "lora_dropout"},
      {R"("use_rslora": 1)", malformed, "use_rslora"},
      {R"("use_rslora": "true")", malformed, "use_rslora"},
      {R"("fan_in_fan_out": "yes")", malformed, "fan_in_fan_out"},
      {R"("rank_pattern": [4])", malformed, "rank_pattern"},
      {R"("rank_pattern": {"q": 0})", malformed, "rank_pattern.q"},
      {R"("rank_pattern": {"q": null})", malformed, "rank_pattern.q"},
      {R"("rank_pattern": {"q": 2.5})", malformed, "rank_pattern.q"},
      {R"("alpha_pattern": "q")", malformed, "alpha_pattern"},
      {R"("alpha_pattern": {"q": "2"})", malformed, "alpha_pattern.q"},
      {R"("alpha_pattern": {"q": null})", malformed, "alpha_pattern.q"},
      {R"("target_modules": null)", malformed, "target_modules", "is missing"},
      {R"("target_modules": [])", malformed, "target_modules", "at least one name"},
      {R"("target_modules": "")", malformed, "target_modules"},
      {R"("target_modules": ["q", 3])", malformed, "target_modules"},
      {R"("target_modules": {"q": 1})", malformed, "target_modules"},
      {R"("target_modules": 7)", malformed, "target_modules"},
      {R"("exclude_modules": 7)", malformed, "exclude_modules"},
      {R"("exclude_modules": [null])", malformed, "exclude_modules"},
      {R"("layers_to_transform": "1")", malformed, "layers_to_transform"},
      {R"("layers_to_transform": [1.5])", malformed, "layers_to_transform"},
      {R"("layers_to_transform": [0, null])", malformed, "layers_to_transform"},
      {R"("layers_to_transform": true)", malformed, "layers_to_transform"},
      {R"("layers_to_transform": [1], "layers_pattern": 3)", malformed, "layers_pattern"},
      {R"("layers_pattern": "layers")", malformed, "layers_pattern", "without layers_to_transform"},
      {R"("target_modules": "q", "layers_to_transform": [1])", malformed, "layers_to_transform"},
      {R"("base_model_name_or_path": 3)", malformed, "base_model_name_or_path"},
      {R"("task_type": ["CAUSAL_LM"])", malformed, "task_type"},
      {R"("bias": true)", malformed, "bias"},
      {R"("init_lora_weights": 3)", malformed, "init_lora_weights"},
  };
  for (const BadCase& bad : cases) {
    ProblemList problems;
    EXPECT_TRUE(Parse(Json(bad.keys), problems).has_value()) << bad.keys;
    EXPECT_THAT(problems.items(), ElementsAre(IsError(bad.reason, bad.field))) << bad.keys;
    EXPECT_EQ(problems.items()[0].file, "c.json");
    EXPECT_THAT(problems.items()[0].message, HasSubstr(bad.message)) << bad.keys;
  }
}

TEST(PeftConfigTest, SwitchesThatAreNotImplementedAreRefused) {
  const Reason unsupported = Reason::kUnsupportedAdapter;
  const std::vector<BadCase> cases = {
      {R"("use_dora": true)", unsupported, "use_dora"},
      {R"("use_dora": "yes")", unsupported, "use_dora"},
      {R"("lora_bias": true)", unsupported, "lora_bias"},
      {R"("bias": "all")", unsupported, "bias"},
      {R"("bias": "lora_only")", unsupported, "bias"},
      {R"("bias": "other")", unsupported, "bias"},
      {R"("modules_to_save": ["lm_head"])", unsupported, "modules_to_save"},
      {R"("trainable_token_indices": [1])", unsupported, "trainable_token_indices"},
      {R"("trainable_token_indices": {"e": [1]})", unsupported, "trainable_token_indices"},
      {R"("target_parameters": ["e.w"])", unsupported, "target_parameters"},
      {R"("target_modules": null, "target_parameters": ["e.w"])", unsupported, "target_parameters"},
      {R"("alora_invocation_tokens": [5])", unsupported, "alora_invocation_tokens"},
      {R"("use_qalora": true)", unsupported, "use_qalora"},
      {R"("arrow_config": {"top_k": 3})", unsupported, "arrow_config"},
      {R"("use_bdlora": {"nblocks": 2})", unsupported, "use_bdlora"},
      {R"("kasa_config": {"beta": 1})", unsupported, "kasa_config"},
      {R"("init_lora_weights": "pissa")", unsupported, "init_lora_weights", "save_pretrained"},
      {R"("init_lora_weights": "pissa_niter_4")", unsupported, "init_lora_weights",
       "save_pretrained"},
      {R"("init_lora_weights": "olora")", unsupported, "init_lora_weights", "save_pretrained"},
      {R"("init_lora_weights": "OLoRA")", unsupported, "init_lora_weights", "save_pretrained"},
      {R"("init_lora_weights": "corda")", unsupported, "init_lora_weights", "save_pretrained"},
      {R"("init_lora_weights": "loftq")", unsupported, "init_lora_weights", "save_pretrained"},
      {R"("init_lora_weights": "lora_ga")", unsupported, "init_lora_weights", "save_pretrained"},
      {R"("init_lora_weights": "newest")", unsupported, "init_lora_weights", "not known"},
      {R"("use_future_maths": true)", unsupported, "use_future_maths", "may change the result"},
      {R"("future": 1)", unsupported, "future"},
      {R"("future": -0.5)", unsupported, "future"},
      {R"("future": "x")", unsupported, "future"},
      {R"("future": [0])", unsupported, "future"},
      {R"("future": {"a": null})", unsupported, "future"},
  };
  for (const BadCase& bad : cases) {
    ProblemList problems;
    const auto config = Parse(Json(bad.keys), problems);
    ASSERT_TRUE(config.has_value()) << bad.keys;
    EXPECT_THAT(config->unsupported_keys, Contains(bad.field));
    EXPECT_THAT(problems.items(), ElementsAre(IsError(bad.reason, bad.field))) << bad.keys;
    EXPECT_THAT(problems.items()[0].message, HasSubstr(bad.message)) << bad.keys;
  }
}

TEST(PeftConfigTest, WhatIsNoLoraConfigEndsTheReading) {
  const Reason malformed = Reason::kMalformedConfig;
  const std::vector<BadCase> cases = {
      {"", malformed, "", "not JSON"},
      {"{", malformed, "", "not JSON"},
      {"[]", malformed, "", "not a JSON object"},
      {"null", malformed, "", "not a JSON object"},
      {"\"LORA\"", malformed, "", "not a JSON object"},
      {R"({"peft_type": "LORA",})", malformed, "", "not JSON"},
      {R"({"peft_type": "LORA"} x)", malformed, "", "not JSON"},
      {R"({"peft_type": "LORA", "r": NaN})", malformed, "", "not JSON"},
      {R"({"peft_type": "LORA", "lora_alpha": Infinity})", malformed, "", "not JSON"},
      {R"({"peft_type": "LORA", "lora_alpha": 1e999})", malformed, "", "not JSON"},
      {"{\"peft_type\": \"LORA\", \"a\": \"\xff\"}", malformed, "", "not JSON"},
      {R"({"r": 8})", malformed, "peft_type", "peft_type is missing"},
      {R"({"fine_tune_type": "lora"})", malformed, "peft_type", "mlx-lm"},
      {R"({"peft_type": null})", malformed, "peft_type", "must be a string"},
      {R"({"peft_type": 3})", malformed, "peft_type", "must be a string"},
      {R"({"peft_type": "lora"})", Reason::kUnsupportedAdapter, "peft_type"},
      {R"({"peft_type": "ADALORA", "r": 0})", Reason::kUnsupportedAdapter, "peft_type", "ADALORA"},
  };
  for (const BadCase& bad : cases) {
    ProblemList problems;
    EXPECT_FALSE(Parse(bad.keys, problems).has_value()) << bad.keys;
    EXPECT_THAT(problems.items(), ElementsAre(IsError(bad.reason, bad.field))) << bad.keys;
    EXPECT_THAT(problems.items()[0].message, HasSubstr(bad.message)) << bad.keys;
    EXPECT_EQ(problems.items()[0].file, "c.json");
  }
}

TEST(PeftConfigTest, AllThatIsWrongIsFound) {
  ProblemList problems;
  Parse(Json(R"("r": 0, "lora_alpha": "x", "use_dora": true, "future": 1, "bias": "all",
                "rank_pattern": {"a": 0, "b": 0})"),
        problems);
  EXPECT_EQ(problems.items().size(), 7u);
}

TEST(PeftConfigTest, RuntimeConfigIsIgnoredWithAWarning) {
  ProblemList problems;
  EXPECT_TRUE(Parse(Json(R"("runtime_config": {"ephemeral_gpu_offload": true})"), problems));
  EXPECT_FALSE(problems.has_errors());
  EXPECT_THAT(problems.warnings(), ElementsAre(HasSubstr("runtime_config is ignored")));
}

TEST(PeftConfigTest, DuplicateKeysCountAsInPython) {
  ProblemList problems;
  const auto config = Parse(
      Json(R"("rank_pattern": {"a": 1, "b": 2, "a": 3}, "use_dora": true, "use_dora": false)"),
      problems);
  EXPECT_THAT(problems.items(), IsEmpty());
  EXPECT_THAT(config->rank_pattern, Optional(ElementsAre(Pair("a", 3), Pair("b", 2))));
}

TEST(PeftConfigTest, HostileConfigsAreCutOff) {
  const int deep = 200'000;
  std::string many_keys = "{";
  for (size_t i = 0; i <= kMaxConfigKeys; ++i) many_keys += fmt::format("\"{}\":1,", i);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{\"a\": " + std::string(deep, '[') + std::string(deep, ']') + "}", "deep"},
      {"{\"a\": " + std::string(deep, '['), "not JSON"},
      {many_keys + "\"x\":1}", "more than 20000 keys"},
  };
  for (const auto& [json, message] : cases) {
    ProblemList problems;
    EXPECT_FALSE(Parse(json, problems).has_value());
    ASSERT_THAT(problems.items(), ElementsAre(IsError(Reason::kMalformedConfig, "")));
    EXPECT_THAT(problems.items()[0].message, HasSubstr(message));
  }
}

TEST(PeftConfigTest, HostileNamesAreQuotedAndCut) {
  ProblemList problems;
  Parse(Json("\"" + std::string(100'000, 'k') + "\": 1, \"\\u0000\\n\": \"" +
             std::string(100'000, 'v') + "\""),
        problems);
  ASSERT_EQ(problems.items().size(), 2u);
  for (const Problem& problem : problems.items()) {
    EXPECT_LT(problem.message.size(), 400u);
    EXPECT_LT(problem.field.size(), 200u);
    EXPECT_EQ(problem.message.find('\n'), std::string::npos);
  }
}

// Every config of PEFT's own method comparison has a decided outcome: other methods are refused by
// peft_type; of LoRA, these are what it says beside switches that are on. Some are configs of a
// training to come, which have no targets yet.
TEST(PeftConfigTest, ConfigsOfPeftsMethodComparison) {
  const std::map<std::string, std::vector<std::string>> lora = {
      {"MetaMathQA__experiments__lora__llama-3.2-3B-rank10-target-mlp.json", {}},
      {"MetaMathQA__experiments__lora__llama-3.2-3B-rank14-target-mlp-bdlora.json", {"use_bdlora"}},
      {"MetaMathQA__experiments__lora__llama-3.2-3B-rank32-dora.json",
       {"target_modules", "use_dora"}},
      {"MetaMathQA__experiments__lora__llama-3.2-3B-rank32-kasa.json",
       {"target_modules", "kasa_config"}},
      {"MetaMathQA__experiments__lora__llama-3.2-3B-rank32-mica.json", {"target_modules"}},
      {"MetaMathQA__experiments__lora__llama-3.2-3B-rank32-riemannian.json", {"target_modules"}},
      {"MetaMathQA__experiments__lora__llama-3.2-3B-rank64-rslora.json", {"target_modules"}},
      {"MetaMathQA__experiments__lora__llama-3.2-3B-rank64.json", {"target_modules"}},
      {"image-gen__experiments__dora__flux2-klein-rank64.json", {"use_dora"}},
      {"image-gen__experiments__lora__flux2-klein-default.json", {}},
      {"image-gen__experiments__lora__flux2-klein-rank64-kasa.json", {"kasa_config"}},
      {"image-gen__experiments__lora__flux2-klein-rank64.json", {}},
      {"text_generation_benchmark__experiments__lora__lora_r8.json", {}},
  };
  int files = 0;
  const std::filesystem::path folder = std::filesystem::path(ADAPTERD_FIXTURES) / "peft-configs";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    ++files;
    ProblemList problems;
    const auto config = ParsePeftConfig(ReadFile(entry.path()), "c.json", problems);
    std::vector<std::string> fields;
    for (const Problem& problem : problems.items()) fields.push_back(problem.field);
    const auto expected = lora.find(entry.path().filename());
    EXPECT_EQ(config.has_value(), expected != lora.end()) << entry.path();
    EXPECT_EQ(fields,
              expected != lora.end() ? expected->second : std::vector<std::string>{"peft_type"})
        << entry.path();
  }
  EXPECT_EQ(files, 99);
}

}  // namespace
}  // namespace adapterd
