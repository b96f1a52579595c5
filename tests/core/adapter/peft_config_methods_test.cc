// Configs of AdaLoRA and VeRA.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/adapter/peft_config.h"
#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Optional;
using ::testing::Pair;

std::string Json(std::string_view type, std::string_view keys) {
  return fmt::format(R"({{"peft_type": "{}", "target_modules": ["q"]{}{}}})", type,
                     keys.empty() ? "" : ", ", keys);
}

std::optional<PeftConfig> Parse(std::string_view type, std::string_view keys,
                                ProblemList& problems) {
  return ParsePeftConfig(Json(type, keys), "c.json", problems);
}

TEST(PeftConfigMethodsTest, DefaultsAreThoseOfPeft) {
  ProblemList problems;
  const auto ada = Parse("ADALORA", "", problems);
  ASSERT_TRUE(ada.has_value());
  EXPECT_EQ(ada->method, PeftMethod::kAdaLora);
  EXPECT_THAT(ada->r, Optional(12));
  EXPECT_THAT(ada->lora_alpha, Optional(8.0));
  EXPECT_THAT(ada->kept_ranks, Optional(IsEmpty()));
  const auto vera = Parse("VERA", "", problems);
  ASSERT_TRUE(vera.has_value());
  EXPECT_EQ(vera->method, PeftMethod::kVera);
  EXPECT_THAT(vera->r, Optional(256));
  EXPECT_THAT(problems.items(), IsEmpty());
}

TEST(PeftConfigMethodsTest, AdaLoraCountsWhatItsMasksKeep) {
  ProblemList problems;
  const auto config = Parse("ADALORA",
                            R"("init_r": 3, "r": 8, "target_r": 2, "lora_alpha": 16, "beta1": 0.85,
                               "deltaT": 1, "tinit": 1, "tfinal": 2, "total_step": 10, "beta2": 0.8,
                               "orth_reg_weight": 0.5, "modules_to_save": ["score"], "bias": "all",
                               "rank_pattern": {"m.q.lora_E": [true, false, true],
                                                "m.k.lora_E.default": [true, true, true],
                                                "m.lora_E.v.lora_E": [false, false, false]})",
                            problems);
  EXPECT_THAT(problems.items(), IsEmpty());
  ASSERT_TRUE(config.has_value());
  EXPECT_THAT(config->r, Optional(3));
  EXPECT_THAT(config->lora_alpha, Optional(16.0));
  EXPECT_THAT(config->rank_pattern, Optional(IsEmpty()));
  EXPECT_THAT(config->kept_ranks,
              Optional(ElementsAre(Pair("m.q", 2), Pair("m.k", 3), Pair("m.lora_E.v", 0))));
  EXPECT_THAT(config->modules_to_save, ElementsAre("score"));
  EXPECT_EQ(config->bias, PeftBias::kAll);
}

TEST(PeftConfigMethodsTest, AdaLorasAlphaOfZeroStandsForInitRUnlessRanksWerePruned) {
  for (const char* alpha : {"0", "-4", "0.0"}) {
    ProblemList problems;
    const auto whole = Parse("ADALORA",
                             fmt::format(R"("init_r": 2, "lora_alpha": {},
                                            "rank_pattern": {{"q.lora_E": [true, true]}})",
                                         alpha),
                             problems);
    EXPECT_THAT(problems.items(), IsEmpty());
    EXPECT_THAT(whole->lora_alpha, Optional(2.0));
    const auto pruned = Parse("ADALORA",
                              fmt::format(R"("init_r": 2, "lora_alpha": {},
                                             "rank_pattern": {{"q.lora_E": [true, false]}})",
                                          alpha),
                              problems);
    EXPECT_EQ(pruned->lora_alpha, std::nullopt);
    EXPECT_THAT(problems.items(), ElementsAre(IsError(Reason::kUnsupportedAdapter, "lora_alpha")));
  }
}

TEST(PeftConfigMethodsTest, WhatAdaLoraIgnoresIsAWarning) {
  ProblemList problems;
  const auto config =
      Parse("ADALORA", R"("use_rslora": true, "alpha_pattern": {"q": 3})", problems);
  EXPECT_FALSE(problems.has_errors());
  EXPECT_THAT(problems.warnings(),
              ElementsAre(HasSubstr("use_rslora is set, which AdaLoRA ignores"),
                          HasSubstr("alpha_pattern is set")));
  EXPECT_FALSE(config->use_rslora);
  EXPECT_THAT(config->alpha_pattern, Optional(IsEmpty()));
}

TEST(PeftConfigMethodsTest, ReadsVera) {
  ProblemList problems;
  const auto config = Parse("VERA",
                            R"("r": 16, "save_projection": true, "projection_prng_key": 7,
                               "d_initial": 0.1, "vera_dropout": 0.25, "init_weights": true,
                               "bias": "none", "modules_to_save": ["score"], "revision": "main",
                               "layers_to_transform": [1], "layers_pattern": "h")",
                            problems);
  EXPECT_THAT(problems.items(), IsEmpty());
  ASSERT_TRUE(config.has_value());
  EXPECT_THAT(config->r, Optional(16));
  EXPECT_EQ(config->lora_dropout, 0.25);
  EXPECT_THAT(config->modules_to_save, ElementsAre("score"));
  EXPECT_THAT(config->layers_to_transform, Optional(ElementsAre(1)));
  EXPECT_THAT(config->layers_pattern, ElementsAre("h"));
}

TEST(PeftConfigMethodsTest, WrongValuesAreNamed) {
  const Reason malformed = Reason::kMalformedConfig;
  const Reason unsupported = Reason::kUnsupportedAdapter;
  struct BadCase {
    std::string_view type;
    std::string_view keys;
    Reason reason;
    std::string field;
    std::string message = "";
  };
  const std::vector<BadCase> cases = {
      {"ADALORA", R"("init_r": null)", malformed, "init_r"},
      {"ADALORA", R"("init_r": 0)", malformed, "init_r"},
      {"ADALORA", R"("init_r": 4.0)", malformed, "init_r"},
      {"ADALORA", R"("lora_alpha": null)", malformed, "lora_alpha"},
      {"ADALORA", R"("rank_pattern": [true])", malformed, "rank_pattern"},
      {"ADALORA", R"("init_r": 2, "rank_pattern": {"q.lora_E": [true]})", malformed,
       "rank_pattern.q.lora_E", "a list of 2 booleans"},
      {"ADALORA", R"("init_r": 2, "rank_pattern": {"q.lora_E": [1, 0]})", malformed,
       "rank_pattern.q.lora_E"},
      {"ADALORA", R"("init_r": 2, "rank_pattern": {"q.lora_E": 2})", malformed,
       "rank_pattern.q.lora_E"},
      {"ADALORA", R"("init_r": 1, "rank_pattern": {"q": [true]})", malformed, "rank_pattern.q",
       "must name the lora_E"},
      {"ADALORA", R"("init_r": 1, "rank_pattern": {".lora_E": [true]})", malformed,
       "rank_pattern..lora_E"},
      {"ADALORA", R"("init_r": 1, "rank_pattern": {"q.lora_E.a.b": [true]})", malformed,
       "rank_pattern.q.lora_E.a.b"},
      {"ADALORA", R"("init_r": 1, "rank_pattern": {"q.lora_Ex": [true]})", malformed,
       "rank_pattern.q.lora_Ex"},
      {"ADALORA", R"("init_lora_weights": "pissa")", malformed, "init_lora_weights"},
      {"ADALORA", R"("use_dora": true)", unsupported, "use_dora", "AdaLoRA does not have"},
      {"ADALORA", R"("lora_bias": true)", unsupported, "lora_bias"},
      {"ADALORA", R"("target_parameters": ["e"])", unsupported, "target_parameters"},
      {"ADALORA", R"("use_qalora": true)", unsupported, "use_qalora"},
      {"ADALORA", R"("alora_invocation_tokens": [1])", unsupported, "alora_invocation_tokens"},
      {"ADALORA", R"("bias": "vera_only")", unsupported, "bias"},
      {"ADALORA", R"("save_projection": true)", unsupported, "save_projection", "of ADALORA"},
      {"VERA", R"("r": null)", malformed, "r"},
      {"VERA", R"("r": 0)", malformed, "r"},
      {"VERA", R"("save_projection": false)", unsupported, "save_projection",
       "save_projection=True"},
      {"VERA", R"("save_projection": 0)", malformed, "save_projection"},
      {"VERA", R"("vera_dropout": "0.1")", malformed, "vera_dropout"},
      {"VERA", R"("bias": "all")", unsupported, "bias", "does not save"},
      {"VERA", R"("bias": "vera_only")", unsupported, "bias", "does not save"},
      {"VERA", R"("bias": "lora_only")", unsupported, "bias", "not known"},
      {"VERA", R"("lora_alpha": 16)", unsupported, "lora_alpha", "not known of VERA"},
      {"VERA", R"("rank_pattern": {"q": 4})", unsupported, "rank_pattern"},
      {"VERA", R"("exclude_modules": ["q"])", unsupported, "exclude_modules"},
      {"VERA", R"("target_parameters": ["e"])", unsupported, "target_parameters"},
      {"VERA", R"("trainable_token_indices": [1])", unsupported, "trainable_token_indices"},
      {"VERA", R"("use_rslora": true)", unsupported, "use_rslora"},
      {"VERA", R"("target_r": 2)", unsupported, "target_r"},
  };
  for (const BadCase& bad : cases) {
    ProblemList problems;
    EXPECT_TRUE(Parse(bad.type, bad.keys, problems).has_value()) << bad.keys;
    ASSERT_THAT(problems.items(), ElementsAre(IsError(bad.reason, bad.field))) << bad.keys;
    EXPECT_THAT(problems.items()[0].message, HasSubstr(bad.message)) << bad.keys;
  }
}

// What cannot be known after a refusal is not left at a default that could be taken for it.
TEST(PeftConfigMethodsTest, RefusedNumbersAreUnknown) {
  ProblemList problems;
  EXPECT_EQ(Parse("ADALORA", R"("init_r": 0)", problems)->r, std::nullopt);
  EXPECT_EQ(Parse("ADALORA", R"("init_r": 0, "lora_alpha": 0)", problems)->lora_alpha,
            std::nullopt);
  EXPECT_EQ(Parse("ADALORA", R"("rank_pattern": {"q": [true]})", problems)->kept_ranks,
            std::nullopt);
  EXPECT_EQ(Parse("VERA", R"("r": -1)", problems)->r, std::nullopt);
}

}  // namespace
}  // namespace adapterd
