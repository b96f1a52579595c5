#include "core/adapter/peft_config.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "core/adapter/config_fields.h"
#include "tests/fuzz/property.h"
#include "tests/fuzz/target.h"

namespace adapterd::fuzz {
namespace {

constexpr std::string_view kAccepted = "accepted, numbers as in the JSON";
constexpr std::string_view kPatterns = "accepted with rank or alpha patterns";

constexpr DeepCheck kDeepChecks[] = {
    {kAccepted, ""},
    {kPatterns, ""},
    {"nested too deep", "nested more than"},
    {"peft_type of another method", "\" is not supported: "},
    {"rank out of range", "r must be"},
    {"alpha of a wrong type", "lora_alpha must be"},
    {"pattern with a bad rank", "rank_pattern"},
    {"no target modules", "target_modules is missing"},
    {"layers without a list of targets", "has no meaning when target_modules is a string"},
    {"initialisation that changes the base", "trained against a changed base weight"},
    {"unknown key that is set", " and set to "},
};

using Json = nlohmann::ordered_json;

double NumberIn(const Json& json, const char* key, double fallback) {
  const auto found = json.find(key);
  return found == json.end() ? fallback : found->get<double>();
}

// What was accepted is what a plain reading of the JSON says. Other methods than LORA have other
// defaults, and patterns of another kind.
void RequireAsWritten(const PeftConfig& config, std::string_view text) {
  if (config.method != PeftMethod::kLora) return;
  const Json json = Json::parse(text);
  Require(config.r.has_value() && config.lora_alpha.has_value(), "an accepted config has numbers");
  Require(static_cast<double>(*config.r) == NumberIn(json, "r", 8), "r is as written");
  Require(*config.lora_alpha == NumberIn(json, "lora_alpha", 8), "lora_alpha is as written");
  Require(config.rank_pattern && config.alpha_pattern, "an accepted config has its patterns");
  const auto pattern = json.find("rank_pattern");
  if (pattern != json.end() && pattern->is_object()) {
    Require(config.rank_pattern->size() == pattern->size(), "no rank pattern is lost");
    size_t at = 0;
    for (const auto& [key, value] : pattern->items()) {
      const auto& [read_key, read_value] = (*config.rank_pattern)[at++];
      Require(read_key == key && static_cast<double>(read_value) == value.get<double>(),
              "rank patterns keep their order");
    }
  }
  Note(PeftConfigTarget(), kAccepted);
  if (!config.rank_pattern->empty() || !config.alpha_pattern->empty()) {
    Note(PeftConfigTarget(), kPatterns);
  }
}

void RequireLimits(const PeftConfig& config) {
  if (config.r) Require(*config.r >= 1 && *config.r <= kMaxRank, "r is a rank");
  if (config.lora_alpha) Require(std::isfinite(*config.lora_alpha), "lora_alpha is finite");
  Require(std::isfinite(config.lora_dropout), "lora_dropout is finite");
  Require(config.layers_pattern.size() <= kMaxLayersPatterns, "layers_pattern is limited");
  if (config.target_modules) {
    Require(config.target_modules->names.size() <= kMaxConfigNames, "target_modules is limited");
  }
  if (config.rank_pattern) {
    for (const auto& [key, rank] : *config.rank_pattern) {
      Require(rank >= 1 && rank <= kMaxRank, "every rank is one");
    }
  }
  if (config.alpha_pattern) {
    for (const auto& [key, alpha] : *config.alpha_pattern) {
      Require(std::isfinite(alpha), "every alpha is finite");
    }
  }
}

void Run(std::string_view input) {
  ProblemList problems;
  const auto config = ParsePeftConfig(input, "adapter_config.json", problems);
  RequireGoodProblems(PeftConfigTarget(), problems,
                      {Reason::kMalformedConfig, Reason::kUnsupportedAdapter});
  if (!config) return Require(problems.has_errors(), "no config comes without an error");
  RequireLimits(*config);
  if (!config->unsupported_keys.empty()) {
    Require(problems.has_errors(), "a refused key is an error");
  }
  if (!problems.has_errors()) RequireAsWritten(*config, input);
}

}  // namespace

const Target& PeftConfigTarget() {
  static constexpr Target kTarget = {"peft_config", Run, kDeepChecks};
  return kTarget;
}

}  // namespace adapterd::fuzz
