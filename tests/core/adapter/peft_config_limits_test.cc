#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/adapter/config_fields.h"
#include "core/adapter/config_json.h"
#include "core/adapter/peft_config.h"
#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// `keys` go beside a valid minimum; a key that is there already comes twice, and the last counts.
std::string Json(const std::string& keys) {
  return R"({"peft_type": "LORA", "target_modules": ["q"], )" + keys + "}";
}

std::optional<PeftConfig> Parse(const std::string& json, ProblemList& problems) {
  return ParsePeftConfig(json, "c.json", problems);
}

std::string Repeat(std::string_view text, size_t times) {
  std::string result;
  for (size_t i = 0; i < times; ++i) result += text;
  return result;
}

// Every one is below kMaxConfigBytes, and is let go of where it passes the limit.
TEST(PeftConfigLimitsTest, HostileConfigsAreCutOff) {
  const int deep = 200'000;
  std::string patterns;
  for (int i = 0; i < 100'000; ++i) patterns += fmt::format("\"{}\":1,", i);
  const std::string most(kMaxConfigBytes - 1000, '[');
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{\"a\": " + std::string(deep, '[') + std::string(deep, ']') + "}", "more than 64 deep"},
      {"{\"a\": " + std::string(deep, '['), "more than 64 deep"},
      {"{\"a\": " + most, "more than 64 deep"},
      {Repeat("{\"a\":", 1'000'000), "more than 64 deep"},
      {"{" + patterns + "\"x\":1}", "more than 20000 keys"},
      {Json("\"rank_pattern\": {" + patterns + "\"x\":1}"), "more than 20000 keys"},
      {Json("\"target_modules\": [" + Repeat("[],", 2'000'000) + "1]"), "more than 1000000 values"},
      {Json("\"x\": [" + Repeat("1,", 4'000'000) + "1]"), "more than 1000000 values"},
      {"{\"a\": \"" + std::string(kMaxConfigBytes - 1000, 'x'), "not JSON"},
  };
  for (const auto& [json, message] : cases) {
    ASSERT_LE(static_cast<int64_t>(json.size()), kMaxConfigBytes);
    ProblemList problems;
    EXPECT_FALSE(Parse(json, problems).has_value());
    ASSERT_THAT(problems.items(), ElementsAre(IsError(Reason::kMalformedConfig, "")));
    EXPECT_THAT(problems.items()[0].message, HasSubstr(message));
    EXPECT_LT(problems.items()[0].message.size(), 400u);
  }
}

TEST(PeftConfigLimitsTest, LongListsAreRefusedByTheirKey) {
  const std::string names = Repeat("\"q\",", kMaxConfigNames) + "\"q\"";
  std::string many_ids;
  std::string more_ids;
  for (int i = 1; i < 300'000; ++i) many_ids += fmt::format("{},", i);
  for (int i = 1; i <= 200'000; ++i) more_ids += fmt::format("{},", i);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"\"target_modules\": [" + names + "]", "target_modules"},
      {"\"exclude_modules\": [" + names + "]", "exclude_modules"},
      {"\"modules_to_save\": [" + names + "]", "modules_to_save"},
      {"\"target_parameters\": [" + names + "]", "target_parameters"},
      {"\"layers_to_transform\": [" + Repeat("1,", kMaxConfigNames) + "1]", "layers_to_transform"},
      {"\"trainable_token_indices\": {\"a\": [" + many_ids + "0], \"b\": [" + more_ids + "0]}",
       "trainable_token_indices.b"},
  };
  for (const auto& [keys, field] : cases) {
    ProblemList problems;
    Parse(Json(keys), problems);
    ASSERT_THAT(problems.items(), ElementsAre(IsError(Reason::kMalformedConfig, field)));
    EXPECT_LT(problems.items()[0].message.size(), 400u);
  }
}

TEST(PeftConfigLimitsTest, HostileNamesAreQuotedAndCut) {
  ProblemList problems;
  Parse(Json(fmt::format(R"("{}": 1, "\u0000\n": "{}")", std::string(100'000, 'k'),
                         std::string(100'000, 'v'))),
        problems);
  ASSERT_EQ(problems.items().size(), 2u);
  for (const Problem& problem : problems.items()) {
    EXPECT_LT(problem.message.size(), 400u);
    EXPECT_LT(problem.field.size(), 200u);
    EXPECT_EQ(problem.message.find('\n'), std::string::npos);
  }
}

}  // namespace
}  // namespace adapterd
