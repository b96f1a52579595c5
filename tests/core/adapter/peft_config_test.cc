#include "core/adapter/peft_config.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/adapter/config_fields.h"
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

TEST(PeftConfigTest, ReadsWhatTheFileHoldsBesideThePairs) {
  ProblemList problems;
  const auto config = Parse(Json(R"("use_dora": true, "bias": "all", "fan_in_fan_out": true,
                    "modules_to_save": ["score", "lm_head"],
                    "trainable_token_indices": {"z": [3, 1, 7], "a.b": []},
                    "layer_replication": [[0, 2], [1, 99999]])"),
                            problems);
  EXPECT_THAT(problems.items(), IsEmpty());
  ASSERT_TRUE(config.has_value());
  EXPECT_EQ(config->method, PeftMethod::kLora);
  EXPECT_TRUE(config->use_dora);
  EXPECT_FALSE(config->lora_bias);
  EXPECT_EQ(config->bias, PeftBias::kAll);
  EXPECT_TRUE(config->fan_in_fan_out);
  EXPECT_THAT(config->modules_to_save, ElementsAre("score", "lm_head"));
  EXPECT_FALSE(config->trained_tokens.of_input_embedding);
  EXPECT_THAT(config->trained_tokens.layers,
              ElementsAre(Pair("z", ElementsAre(3, 1, 7)), Pair("a.b", IsEmpty())));
  EXPECT_THAT(config->layer_replication, ElementsAre(Pair(0, 2), Pair(1, 99'999)));
  EXPECT_THAT(config->target_parameters, IsEmpty());
  EXPECT_THAT(config->unsupported_keys, IsEmpty());
}

TEST(PeftConfigTest, ReadsBiasesParametersAndTokensOfTheInputEmbedding) {
  ProblemList problems;
  const auto biased =
      Parse(Json(R"("lora_bias": true, "bias": "lora_only", "trainable_token_indices": [9, 0])"),
            problems);
  EXPECT_TRUE(biased->lora_bias);
  EXPECT_EQ(biased->bias, PeftBias::kLoraOnly);
  EXPECT_TRUE(biased->trained_tokens.of_input_embedding);
  EXPECT_THAT(biased->trained_tokens.layers, ElementsAre(Pair("embed_tokens", ElementsAre(9, 0))));
  const auto experts = Parse(Json(R"("target_parameters": ["experts.gate_up_proj"])"), problems);
  EXPECT_THAT(experts->target_parameters, ElementsAre("experts.gate_up_proj"));
  EXPECT_THAT(problems.items(), IsEmpty());
}

// Without parameters, no targets at all are an error, but in the config of a training to come:
// there null is a list that the base model decides.
TEST(PeftConfigTest, TargetsThatAreNotNamed) {
  struct Case {
    std::string keys;
    bool error;
    bool warning;
    bool any;
  };
  const std::vector<Case> cases = {
      {R"("target_modules": null, "inference_mode": false)", false, true, true},
      {R"("target_modules": null)", true, false, false},
      {R"("target_modules": null, "inference_mode": true)", true, false, false},
      {R"("target_modules": null, "inference_mode": null)", true, false, false},
      {R"("target_modules": null, "inference_mode": 0)", true, false, false},
      {R"("target_modules": [], "inference_mode": false)", true, false, false},
      {R"("inference_mode": false)", true, false, false},
      {R"("target_modules": [])", true, false, false},
      {R"("target_modules": "")", true, false, false},
      {R"("x": 0)", true, false, false},
      {R"("target_modules": null, "target_parameters": ["e.w"])", false, false, false},
      {R"("target_modules": [], "target_parameters": ["e.w"])", false, false, false},
      {R"("target_parameters": ["e.w"])", false, false, false},
  };
  for (const std::string type : {"LORA", "ADALORA", "VERA"}) {
    for (const Case& one : cases) {
      if (type != "LORA" && one.keys.find("target_parameters") != std::string::npos) continue;
      ProblemList problems;
      const auto config =
          Parse(fmt::format(R"({{"peft_type": "{}", {}}})", type, one.keys), problems);
      ASSERT_TRUE(config.has_value());
      EXPECT_EQ(problems.items().size(), one.error || one.warning ? 1u : 0u) << one.keys;
      EXPECT_EQ(config->target_modules.has_value(), !one.error) << one.keys;
      if (config->target_modules) {
        EXPECT_EQ(config->target_modules->any, one.any) << one.keys;
        EXPECT_TRUE(config->target_modules->empty()) << one.keys;
      }
      EXPECT_EQ(problems.has_errors(), one.error) << one.keys;
      if (one.error) {
        EXPECT_THAT(problems.items(),
                    ElementsAre(IsError(Reason::kMalformedConfig, "target_modules")));
      }
    }
  }
}

TEST(PeftConfigTest, WhatPeftForbidsTogetherIsRefused) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("lora_bias": true, "use_dora": true)", "lora_bias"},
      {R"("lora_bias": true, "init_lora_weights": "gaussian")", "lora_bias"},
      {R"("use_dora": true, "megatron_config": {"a": 1})", "use_dora"},
      {R"("target_parameters": ["e"], "lora_dropout": 0.1)", "lora_dropout"},
      {R"("target_parameters": ["e"], "lora_bias": true)", "lora_bias"},
      {R"("target_parameters": ["e"], "use_dora": true)", "use_dora"},
  };
  for (const auto& [keys, field] : cases) {
    ProblemList problems;
    Parse(Json(keys), problems);
    ASSERT_THAT(problems.items(), ElementsAre(IsError(Reason::kMalformedConfig, field))) << keys;
    EXPECT_THAT(problems.items()[0].message, HasSubstr("does not go with")) << keys;
  }
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
           R"("layer_replication": [])",
           R"("eva_config": {"rho": 2.0})",
           R"("megatron_core": "megatron.core", "qalora_group_size": 16, "use_qalora": false)",
           R"("loftq_config": {"loftq_bits": 4}, "corda_config": {"a": 1})",
           R"("velora_config": {"a": 1}, "monteclora_config": {"a": 1})",
           R"("ensure_weight_tying": true, "auto_mapping": {"a": "b"}, "revision": "main")",
           R"("modules_to_save": [], "trainable_token_indices": {}, "target_parameters": [])",
           R"("use_dora": false, "lora_bias": false, "use_bdlora": null, "kasa_config": null)",
           R"("use_dora": true, "megatron_config": {})",
           R"("trainable_token_indices": [], "arrow_config": {}, "alora_invocation_tokens": [])",
           R"("lora_alpha": 1e12, "alpha_pattern": {"q": -1e12})",
           R"("lora_bias": true, "init_lora_weights": false)",
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
      {R"("lora_alpha": 1.1e12)", malformed, "lora_alpha"},
      {R"("lora_alpha": 99999999999999999999999999)", malformed, "lora_alpha"},
      {R"("alpha_pattern": {"q": -1e300})", malformed, "alpha_pattern.q"},
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
      {R"("use_dora": "yes")", malformed, "use_dora"},
      {R"("use_dora": 1)", malformed, "use_dora"},
      {R"("lora_bias": "all")", malformed, "lora_bias"},
      {R"("modules_to_save": "lm_head")", malformed, "modules_to_save", "a list"},
      {R"("modules_to_save": [""])", malformed, "modules_to_save"},
      {R"("modules_to_save": [1])", malformed, "modules_to_save"},
      {R"("modules_to_save": {"lm_head": 1})", malformed, "modules_to_save"},
      {R"("target_parameters": "experts.w1")", malformed, "target_parameters", "a list"},
      {R"("target_parameters": ["a", null])", malformed, "target_parameters"},
      {R"("trainable_token_indices": 5)", malformed, "trainable_token_indices"},
      {R"("trainable_token_indices": false)", malformed, "trainable_token_indices"},
      {R"("trainable_token_indices": [-1])", malformed, "trainable_token_indices", "from 0 to"},
      {R"("trainable_token_indices": [1.0])", malformed, "trainable_token_indices"},
      {R"("trainable_token_indices": [2147483648])", malformed, "trainable_token_indices"},
      {R"("trainable_token_indices": [3, 1, 3])", malformed, "trainable_token_indices", "twice"},
      {R"("trainable_token_indices": {"e": 1})", malformed, "trainable_token_indices.e"},
      {R"("trainable_token_indices": {"e": [true]})", malformed, "trainable_token_indices.e"},
      {R"("trainable_token_indices": {"e": [1], "f": null})", malformed,
       "trainable_token_indices.f"},
      {R"("layer_replication": [[2, 2]])", malformed, "layer_replication", "start < end"},
      {R"("layer_replication": [[-1, 2]])", malformed, "layer_replication"},
      {R"("layer_replication": [[0, 1, 2]])", malformed, "layer_replication"},
      {R"("layer_replication": [[0, 1.5]])", malformed, "layer_replication"},
      {R"("layer_replication": [0, 4])", malformed, "layer_replication"},
      {R"("layer_replication": [[0, 60000], [0, 60000]])", malformed, "layer_replication"},
      {R"("layer_replication": [[0, 18446744073709551615]])", malformed, "layer_replication"},
      {R"("layer_replication": true)", malformed, "layer_replication"},
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
      {R"("bias": "other")", unsupported, "bias", "not known"},
      {R"("bias": "vera_only")", unsupported, "bias", "not known"},
      {R"("alora_invocation_tokens": [5])", unsupported, "alora_invocation_tokens",
       "tokens are not known"},
      {R"("use_qalora": true)", unsupported, "use_qalora"},
      {R"("arrow_config": {"top_k": 3})", unsupported, "arrow_config", "load those by themselves"},
      {R"("use_bdlora": {"nblocks": 2, "more": 1})", unsupported, "use_bdlora.more"},
      {R"("kasa_config": {"beta": 1})", unsupported, "kasa_config"},
      {R"("init_lora_weights": "pissa")", unsupported, "init_lora_weights", "save_pretrained"},
      {R"("init_lora_weights": "pissa_niter_4")", unsupported, "init_lora_weights",
       "save_pretrained"},
      {R"("init_lora_weights": "olora")", unsupported, "init_lora_weights", "save_pretrained"},
      {R"("init_lora_weights": "OLoRA")", unsupported, "init_lora_weights", "save_pretrained"},
      {R"("init_lora_weights": "corda")", unsupported, "init_lora_weights", "save_pretrained"},
      {R"("init_lora_weights": "loftq")", unsupported, "init_lora_weights", "quantised"},
      {R"("init_lora_weights": "lora_ga")", unsupported, "init_lora_weights", "save_pretrained"},
      {R"("init_lora_weights": "newest")", unsupported, "init_lora_weights", "not known"},
      {R"("target_r": 8)", unsupported, "target_r", "not known of LORA"},
      {R"("init_r": 8)", unsupported, "init_r"},
      {R"("vera_dropout": 0.1)", unsupported, "vera_dropout"},
      {R"("save_projection": true)", unsupported, "save_projection"},
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
      {R"({"peft_type": "LORA", "r": NaN})", malformed, "", "NaN and Infinity are no JSON"},
      {R"({"peft_type": "LORA", "lora_alpha": Infinity})", malformed, "",
       "NaN and Infinity are no JSON"},
      {R"({"peft_type": "LORA", "lora_alpha": -Infinity})", malformed, "",
       "NaN and Infinity are no JSON"},
      {R"({"peft_type": "LORA", "lora_alpha": 1e999})", malformed, "", "not JSON"},
      {"{\"peft_type\": \"LORA\", \"a\": \"\xff\"}", malformed, "", "not JSON"},
      {R"({"r": 8})", malformed, "peft_type", "peft_type is missing"},
      {R"({"rank": 8, "alpha": 16})", malformed, "peft_type", "mlx-vlm"},
      {R"({"peft_type": null})", malformed, "peft_type", "must be a string"},
      {R"({"peft_type": 3})", malformed, "peft_type", "must be a string"},
      {R"({"peft_type": "lora"})", Reason::kUnsupportedAdapter, "peft_type", "no such method"},
      {R"({"peft_type": ""})", Reason::kUnsupportedAdapter, "peft_type", "no such method"},
      {R"({"peft_type": "IA3", "r": 0})", Reason::kUnsupportedAdapter, "peft_type",
       "\"IA3\" is not supported: it scales activations"},
      {R"({"peft_type": "LOHA"})", Reason::kUnsupportedAdapter, "peft_type", "save_as_lora"},
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
  Parse(Json(R"("r": 0, "lora_alpha": "x", "use_qalora": true, "future": 1, "bias": "some",
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

}  // namespace
}  // namespace adapterd
