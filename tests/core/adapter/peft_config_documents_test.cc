// The 99 configs of PEFT's own method comparison, and what docs/formats/peft.md says of them.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/adapter/config_json.h"
#include "core/adapter/peft_config.h"
#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;

struct Expected {
  std::string_view file;  // without ".json"
  std::string_view key;   // that decides against it; empty: supported
};
constexpr Expected kExpected[] = {
    {"MetaMathQA__experiments__adalora__llama-3.2-3B-rank32", ""},
    {"MetaMathQA__experiments__adamss__llama-3.2-3B-rank32", "peft_type"},
    {"MetaMathQA__experiments__adaptionprompt__llama-3.2-3B-lr_0.0005", "peft_type"},
    {"MetaMathQA__experiments__adaptionprompt__llama-3.2-3B-lr_5e-3", "peft_type"},
    {"MetaMathQA__experiments__beft__llama-3.2-3B-target-v_proj", "peft_type"},
    {"MetaMathQA__experiments__boft__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__c3a__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__deft__llama-3.2-3B-rank32-para", "peft_type"},
    {"MetaMathQA__experiments__deft__llama-3.2-3B-rank32", "peft_type"},
    {"MetaMathQA__experiments__delora__llama-3.2-3B-rank32", "peft_type"},
    {"MetaMathQA__experiments__fourierft__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__fourierft__llama-3.2-3B-n_frequency-5000", "peft_type"},
    {"MetaMathQA__experiments__frod__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__frod__llama-3.2-3B-sparse0.02-lr_0.001", "peft_type"},
    {"MetaMathQA__experiments__glora__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__glora__llama-3.2-3B-vector-paths", "peft_type"},
    {"MetaMathQA__experiments__gralora__llama-3.2-3B-rank32", "peft_type"},
    {"MetaMathQA__experiments__hira__llama-3.2-3B-rank32-lr4.5e-3", "peft_type"},
    {"MetaMathQA__experiments__ia3__llama-3.2-3B-all-attn-5k-lr0.005", "peft_type"},
    {"MetaMathQA__experiments__ia3__llama-3.2-3B-lr_0.001", "peft_type"},
    {"MetaMathQA__experiments__lily__llama-3.2-3B-rank140-mlp-a2-b2-s8.0", "peft_type"},
    {"MetaMathQA__experiments__lily__llama-3.2-3B-rank896-a2-b2-s2.0", "peft_type"},
    {"MetaMathQA__experiments__ln_tuning__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__loha__llama-3.2-3B-rank32", "peft_type"},
    {"MetaMathQA__experiments__lokr__llama-3.2-3B-rank32-factor4-lr0.003", "peft_type"},
    {"MetaMathQA__experiments__lora__llama-3.2-3B-rank10-target-mlp", ""},
    {"MetaMathQA__experiments__lora__llama-3.2-3B-rank14-target-mlp-bdlora", ""},
    {"MetaMathQA__experiments__lora__llama-3.2-3B-rank32-dora", ""},
    {"MetaMathQA__experiments__lora__llama-3.2-3B-rank32-kasa", "kasa_config"},
    {"MetaMathQA__experiments__lora__llama-3.2-3B-rank32-mica", ""},
    {"MetaMathQA__experiments__lora__llama-3.2-3B-rank32-riemannian", ""},
    {"MetaMathQA__experiments__lora__llama-3.2-3B-rank64-rslora", ""},
    {"MetaMathQA__experiments__lora__llama-3.2-3B-rank64", ""},
    {"MetaMathQA__experiments__miss__llama-3.2-3B-bat", "peft_type"},
    {"MetaMathQA__experiments__miss__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__miss__llama-3.2-3B-mini", "peft_type"},
    {"MetaMathQA__experiments__oft__llama-3.2-3B-rank32", "peft_type"},
    {"MetaMathQA__experiments__osf__llama-3.2-3B-rank128", "peft_type"},
    {"MetaMathQA__experiments__peanut__llama-3.2-3B-rank1-relu-depth0-s32.0", "peft_type"},
    {"MetaMathQA__experiments__peanut__llama-3.2-3B-rank32-relu-depth0-s2.0", "peft_type"},
    {"MetaMathQA__experiments__prefixtuning__llama-3.2-3B-lr_0.001", "peft_type"},
    {"MetaMathQA__experiments__prefixtuning__llama-3.2-3B-lr_0.005_zero_init", "peft_type"},
    {"MetaMathQA__experiments__prefixtuning__llama-3.2-3B-tokens50-init_prefix-lr_0.005",
     "peft_type"},
    {"MetaMathQA__experiments__prompt_tuning__llama-3.2-3B-lr_0.001", "peft_type"},
    {"MetaMathQA__experiments__prompt_tuning__llama-3.2-3B-sample_vocab-lr_0.001", "peft_type"},
    {"MetaMathQA__experiments__psoft__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__psoft__llama-3.2-3B-fast", "peft_type"},
    {"MetaMathQA__experiments__ptuning__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__pvera__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__pvera__llama-3.2-3B-rank64", "peft_type"},
    {"MetaMathQA__experiments__randlora__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__road__llama-3.2-3B-lr_0.001", "peft_type"},
    {"MetaMathQA__experiments__shira__llama-3.2-3B-lr_0.0003-random_seed_42", "peft_type"},
    {"MetaMathQA__experiments__supertuning__llama-3.2-3B-s974-topk", "peft_type"},
    {"MetaMathQA__experiments__supertuning__llama-3.2-3B-s99-supra-r32", "peft_type"},
    {"MetaMathQA__experiments__supertuning__llama-3.2-3B-s99-supra-r8", "peft_type"},
    {"MetaMathQA__experiments__supertuning__llama-3.2-3B-s9935-bottomk", "peft_type"},
    {"MetaMathQA__experiments__supertuning__llama-3.2-3B-s9935-topk", "peft_type"},
    {"MetaMathQA__experiments__tinylora__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__tinylora__llama-3.2-3B-weight-tying", "peft_type"},
    {"MetaMathQA__experiments__trainable_tokens__llama-3.2-3B-sos+eos", "peft_type"},
    {"MetaMathQA__experiments__unilora__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__vblora__llama-3.2-3B-bank1024-lr5e4", "peft_type"},
    {"MetaMathQA__experiments__vblora__llama-3.2-3B-default", "peft_type"},
    {"MetaMathQA__experiments__vera__llama-3.2-3B-default", ""},
    {"MetaMathQA__experiments__waveft__llama-3.2-3B-n_frequency-5000", "peft_type"},
    {"image-gen__experiments__adalora__flux2-klein-default", ""},
    {"image-gen__experiments__boft__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__c3a__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__deft__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__deft__flux2-klein-para", "peft_type"},
    {"image-gen__experiments__delora__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__dora__flux2-klein-rank64", ""},
    {"image-gen__experiments__fourierft__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__frod__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__glora__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__gralora__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__hra__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__ia3__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__lily__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__ln_tuning__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__loha__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__lokr__flux2-klein-lr1e-3", "peft_type"},
    {"image-gen__experiments__lora__flux2-klein-default", ""},
    {"image-gen__experiments__lora__flux2-klein-rank64-kasa", "kasa_config"},
    {"image-gen__experiments__lora__flux2-klein-rank64", ""},
    {"image-gen__experiments__miss__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__oft__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__osf__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__peanut__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__psoft__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__pvera__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__randlora__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__road__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__shira__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__vblora__flux2-klein-default", "peft_type"},
    {"image-gen__experiments__vera__flux2-klein-default", ""},
    {"image-gen__experiments__waveft__flux2-klein-default", "peft_type"},
    {"text_generation_benchmark__experiments__lora__lora_r8", ""},
};

std::filesystem::path Folder() { return std::filesystem::path(ADAPTERD_FIXTURES) / "peft-configs"; }

std::string TypeOf(std::string_view text) {
  return ParseConfigJson(text)->find("peft_type")->get<std::string>();
}

struct Outcome {
  std::string type;
  std::string key;
  std::string message;
};

// By file, without ".json".
std::map<std::string, Outcome> Outcomes() {
  std::map<std::string, Outcome> outcomes;
  for (const auto& entry : std::filesystem::directory_iterator(Folder())) {
    const std::string text = ReadFile(entry.path());
    ProblemList problems;
    ParsePeftConfig(text, "c.json", problems);
    Outcome& outcome = outcomes[entry.path().stem().string()];
    outcome.type = TypeOf(text);
    for (const Problem& problem : problems.items()) {
      if (problem.severity == Severity::kWarning) continue;
      EXPECT_EQ(problem.reason, Reason::kUnsupportedAdapter) << entry.path();
      EXPECT_EQ(outcome.key, "") << entry.path() << " has two deciding keys";
      outcome.key = problem.field;
      outcome.message = problem.message;
    }
  }
  return outcomes;
}

TEST(PeftConfigDocumentsTest, EveryConfigIsSupportedOrRefusedByItsDecidingKey) {
  const auto outcomes = Outcomes();
  std::set<std::string> listed;
  for (const auto& [file, key] : kExpected) {
    listed.emplace(file);
    const auto found = outcomes.find(std::string(file));
    ASSERT_NE(found, outcomes.end()) << file;
    EXPECT_EQ(found->second.key, key) << file;
  }
  for (const auto& [file, outcome] : outcomes) EXPECT_TRUE(listed.contains(file)) << file;
  EXPECT_EQ(listed.size(), 99u);
}

// Without targets, a supported config of a training to come is read with a warning.
TEST(PeftConfigDocumentsTest, ConfigsWithoutTargetsAreReadWithAWarning) {
  for (const auto& [file, outcome] : Outcomes()) {
    if (!outcome.key.empty()) continue;
    const std::string text = ReadFile(Folder() / (file + ".json"));
    const bool without = ParseConfigJson(text)->find("target_modules")->is_null();
    ProblemList problems;
    const auto config = ParsePeftConfig(text, "c.json", problems);
    EXPECT_EQ(problems.warnings().size(), without ? 1u : 0u) << file;
    EXPECT_EQ(config->target_modules->any, without) << file;
  }
}

// Rows "| `name` | number | text |" below the heading `heading`, by name.
struct Row {
  int configs = 0;
  std::string text;
};
std::map<std::string, Row> Rows(std::string_view heading) {
  std::istringstream page(ReadFile(std::filesystem::path(ADAPTERD_DOCS) / "formats/peft.md"));
  std::map<std::string, Row> rows;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("#")) inside = line == heading;
    if (!inside || !line.starts_with("| `")) continue;
    const std::vector<std::string> cells = absl::StrSplit(line, " | ");
    if (cells.size() != 3) {
      ADD_FAILURE() << line;
      continue;
    }
    const std::string name = cells[0].substr(3, cells[0].size() - 4);
    const std::string text(absl::StripSuffix(cells[2], " |"));
    EXPECT_TRUE(rows.emplace(name, Row{std::stoi(cells[1]), text}).second) << name;
  }
  return rows;
}

TEST(PeftConfigDocumentsTest, TheTableOfMethodsIsWhatTheCodeDoes) {
  const auto rows = Rows("### Methods");
  std::set<std::string> known;
  for (const PeftMethod method : {PeftMethod::kLora, PeftMethod::kAdaLora, PeftMethod::kVera}) {
    const std::string name(PeftTypeName(method));
    known.insert(name);
    ASSERT_TRUE(rows.contains(name));
    EXPECT_EQ(rows.at(name).text, "read");
    EXPECT_EQ(FindPeftMethod(name), method);
  }
  for (const RefusedMethod& method : RefusedMethods()) {
    const std::string name(method.peft_type);
    EXPECT_TRUE(known.insert(name).second) << name;
    EXPECT_EQ(FindPeftMethod(name), std::nullopt);
    ASSERT_TRUE(rows.contains(name)) << name;
    EXPECT_EQ(rows.at(name).text, method.why);
    EXPECT_THAT(WhyRefused(name), HasSubstr(std::string(method.why)));
  }
  EXPECT_EQ(rows.size(), known.size());
}

TEST(PeftConfigDocumentsTest, TheTableOfMethodsIsWhatBecomesOfTheConfigs) {
  auto rows = Rows("### Methods");
  for (const auto& [file, outcome] : Outcomes()) {
    ASSERT_TRUE(rows.contains(outcome.type)) << outcome.type;
    Row& row = rows[outcome.type];
    --row.configs;
    EXPECT_EQ(outcome.key == "peft_type", row.text != "read") << file;
    if (outcome.key == "peft_type") {
      EXPECT_THAT(outcome.message, HasSubstr(row.text)) << file;
    }
  }
  for (const auto& [type, row] : rows) EXPECT_EQ(row.configs, 0) << type;
}

TEST(PeftConfigDocumentsTest, TheTableOfSwitchesIsWhatTheCodeDoes) {
  auto rows = Rows("### Switches");
  EXPECT_EQ(rows.size(), RefusedSwitches().size());
  for (const RefusedSwitch& refused : RefusedSwitches()) {
    const std::string key(refused.key);
    ASSERT_TRUE(rows.contains(key)) << key;
    EXPECT_EQ(rows.at(key).text, refused.why);
    ProblemList problems;
    const auto config = ParsePeftConfig(
        fmt::format(R"({{"peft_type": "LORA", "target_modules": ["q"], "{}": [1]}})", key),
        "c.json", problems);
    EXPECT_TRUE(config->unsupported_keys.contains(key));
    EXPECT_THAT(problems.items(),
                ::testing::ElementsAre(IsError(Reason::kUnsupportedAdapter, key)));
    EXPECT_THAT(problems.items()[0].message, HasSubstr(std::string(refused.why)));
  }
  for (const auto& [file, outcome] : Outcomes()) {
    if (!outcome.key.empty() && outcome.key != "peft_type") --rows[outcome.key].configs;
  }
  for (const auto& [key, row] : rows) EXPECT_EQ(row.configs, 0) << key;
}

}  // namespace
}  // namespace adapterd
