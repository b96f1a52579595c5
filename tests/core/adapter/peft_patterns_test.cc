#include "core/adapter/peft_patterns.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/core/adapter/adapter_folder.h"
#include "tests/core/adapter/python_tables.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Optional;
using ::testing::SizeIs;

PeftConfig Parse(const std::string& json, ProblemList& problems) {
  auto config = ParsePeftConfig(json, "c.json", problems);
  if (!config) throw std::runtime_error("no config: " + json);
  return *std::move(config);
}

TEST(PatternKeysTest, AgreesWithPython) {
  ASSERT_GT(python::kKeyCases.size(), 30u);
  for (const auto& expected : python::kKeyCases) {
    SCOPED_TRACE(::testing::PrintToString(expected.keys) + " on " + expected.path);
    PatternKeys keys;
    ASSERT_THAT(keys.Compile(expected.keys), IsOk());
    RegexBudget budget;
    ASSERT_OK_AND_ASSIGN(const std::vector<size_t> found, keys.FindAll(expected.path, budget));
    EXPECT_EQ(found.empty() ? -1 : static_cast<int>(found[0]), expected.found);
  }
}

TEST(PatternKeysTest, MemoryIsBounded) {
  std::vector<std::string> keys;
  for (int i = 0; i < 5000; ++i) keys.push_back("(?:ab){2000}" + std::to_string(i));
  PatternKeys patterns;
  EXPECT_THAT(patterns.Compile(keys), HasReason(Reason::kMalformedConfig));
}

TEST(PatternKeysTest, FindsAllInFileOrder) {
  PatternKeys keys;
  ASSERT_THAT(keys.Compile({"q_proj", "v_proj", ".*_proj", "self_attn.q_proj"}), IsOk());
  RegexBudget budget;
  ASSERT_OK_AND_ASSIGN(const auto found, keys.FindAll("a.self_attn.q_proj", budget));
  EXPECT_THAT(found, ElementsAre(0, 2, 3));
}

TEST(PeftPatternsTest, TargetsAgreeWithPython) {
  ASSERT_GT(python::kTargetCases.size(), 60u);
  for (const auto& expected : python::kTargetCases) {
    SCOPED_TRACE(expected.config + " on " + expected.path);
    ProblemList problems;
    const PeftConfig config = Parse(expected.config, problems);
    PeftPatterns patterns(config, problems);
    EXPECT_THAT(patterns.IsTargeted(expected.path), Optional(expected.targeted));
    EXPECT_THAT(problems.items(), IsEmpty());
  }
}

TEST(PeftPatternsTest, AllLinearTargetsWhateverIsNotExcluded) {
  for (const char* spelling : {"all-linear", "ALL-Linear"}) {
    ProblemList problems;
    const PeftConfig config = Parse(std::string(R"({"peft_type": "LORA", "target_modules": ")") +
                                        spelling + R"(", "exclude_modules": ["lm_head"]})",
                                    problems);
    PeftPatterns patterns(config, problems);
    EXPECT_THAT(patterns.IsTargeted("model.layers.0.mlp.up_proj"), Optional(true));
    EXPECT_THAT(patterns.IsTargeted("lm_head"), Optional(false));
  }
}

TEST(PeftPatternsTest, RankAndAlphaAreLookedUpIndependently) {
  ProblemList problems;
  const PeftConfig config = Parse(R"({"peft_type": "LORA", "target_modules": ["q", "k"], "r": 8,
      "lora_alpha": 16, "rank_pattern": {"q": 4, "layers.1.q": 2, "k": 1},
      "alpha_pattern": {"^layers.0.q": 32, "a.b+c": 7}})",
                                  problems);
  PeftPatterns patterns(config, problems);
  EXPECT_THAT(patterns.RanksOf("layers.0.q"), Optional(ElementsAre(4)));
  EXPECT_THAT(patterns.RanksOf("layers.1.q"), Optional(ElementsAre(4, 2)));
  EXPECT_THAT(patterns.RanksOf("layers.1.v"), Optional(ElementsAre(8)));
  EXPECT_THAT(patterns.AlphasOf("layers.0.q"), Optional(ElementsAre(32)));
  EXPECT_THAT(patterns.AlphasOf("x.layers.0.q"), Optional(ElementsAre(16)));
  EXPECT_THAT(patterns.AlphasOf("a.b+c"), Optional(ElementsAre(7)));
  EXPECT_THAT(problems.items(), IsEmpty());
}

TEST(PeftPatternsTest, UnusedTargetsAreThoseNoPathEndsWith) {
  ProblemList problems;
  const PeftConfig config = Parse(R"({"peft_type": "LORA", "exclude_modules": ["k"],
      "target_modules": ["q", "v", "k", "attn.o"], "layers_to_transform": [3]})",
                                  problems);
  PeftPatterns patterns(config, problems);
  patterns.IsTargeted("layers.3.attn.q");
  patterns.IsTargeted("layers.1.attn.v");
  EXPECT_THAT(patterns.UnusedTargets(), ElementsAre("attn.o"));
}

TEST(PeftPatternsTest, BadPatternsAreReportedOnceAndAnswerNothing) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"target_modules", R"("target_modules": "q(")"},
      {"exclude_modules", R"("target_modules": ["q"], "exclude_modules": "[a")"},
      {"layers_pattern",
       R"~("target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": "("  )~"},
      {"rank_pattern", R"("target_modules": ["q"], "rank_pattern": {"q": 4, "(": 2})"},
      {"alpha_pattern", R"("target_modules": ["q"], "alpha_pattern": {"\\Qq": 4})"},
  };
  for (const auto& [field, keys] : cases) {
    SCOPED_TRACE(field);
    ProblemList problems;
    const PeftConfig config = Parse(R"({"peft_type": "LORA", )" + keys + "}", problems);
    PeftPatterns patterns(config, problems);
    for (const char* path : {"layers.1.attn.q", "q"}) {
      EXPECT_EQ(patterns.IsTargeted(path).has_value(),
                field == "rank_pattern" || field == "alpha_pattern");
      EXPECT_EQ(patterns.RanksOf(path).has_value(), field != "rank_pattern");
      EXPECT_EQ(patterns.AlphasOf(path).has_value(), field != "alpha_pattern");
    }
    ASSERT_THAT(problems.items(), ElementsAre(IsError(Reason::kMalformedConfig, field)));
    EXPECT_EQ(problems.items()[0].file, "c.json");
  }
}

TEST(PeftPatternsTest, NullTargetsAreEveryModuleOrWithParametersNone) {
  ProblemList problems;
  const PeftConfig any = Parse(R"({"peft_type": "LORA", "target_modules": null,
      "inference_mode": false, "exclude_modules": ["lm_head"], "layers_to_transform": [1]})",
                               problems);
  PeftPatterns every_module(any, problems);
  EXPECT_THAT(every_module.IsTargeted("model.layers.0.q"), Optional(true));
  EXPECT_THAT(every_module.IsTargeted("lm_head"), Optional(false));
  const PeftConfig none = Parse(R"({"peft_type": "LORA", "target_modules": null,
      "inference_mode": false, "target_parameters": ["experts.w"]})",
                                problems);
  PeftPatterns no_module(none, problems);
  EXPECT_THAT(no_module.IsTargeted("model.layers.0.q"), Optional(false));
  EXPECT_THAT(no_module.IsTargeted("experts.w"), Optional(false));
  EXPECT_FALSE(problems.has_errors());
}

TEST(PeftPatternsTest, CatastrophicPatternsAreReportedOnce) {
  ProblemList problems;
  const PeftConfig config = Parse(R"({"peft_type": "LORA", "target_modules": "(a+)+\\.x",
      "rank_pattern": {"(a+)+\\.x": 4}})",
                                  problems);
  PeftPatterns patterns(config, problems);
  const std::string path = std::string(50, 'a') + ".y.x!";
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(patterns.IsTargeted(path), std::nullopt);
    EXPECT_EQ(patterns.RanksOf(path), std::nullopt);
  }
  EXPECT_THAT(problems.items(), ElementsAre(IsError(Reason::kMalformedConfig, "target_modules"),
                                            IsError(Reason::kMalformedConfig, "rank_pattern")));
}

TEST(PeftPatternsTest, LayersThatAreNoNumbersAreReported) {
  ProblemList problems;
  const PeftConfig config = Parse(R"~({"peft_type": "LORA", "target_modules": ["q"],
      "layers_to_transform": [1], "layers_pattern": "(layers)"})~",
                                  problems);
  PeftPatterns patterns(config, problems);
  EXPECT_EQ(patterns.IsTargeted("model.layers.1.q"), std::nullopt);
  EXPECT_THAT(problems.items(), SizeIs(1));
  EXPECT_THAT(problems.items()[0], IsError(Reason::kMalformedConfig, "layers_pattern"));
}

}  // namespace
}  // namespace adapterd
