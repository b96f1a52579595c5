#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "core/adapter/peft_patterns.h"
#include "core/adapter/python_regex.h"
#include "tests/fuzz/property.h"
#include "tests/fuzz/target.h"

namespace adapterd::fuzz {
namespace {

constexpr std::string_view kMatched = "a pattern matched";
constexpr std::string_view kGroup = "a group was read";
constexpr std::string_view kTargeted = "a module is targeted by its layer";
constexpr std::string_view kRank = "a rank pattern decided";

constexpr DeepCheck kDeepChecks[] = {
    {kMatched, ""},
    {kGroup, ""},
    {kTargeted, ""},
    {kRank, ""},
    {"match limit", "match limit exceeded"},
    {"bad escape", "bad escape"},
    {"error of the compiler", "at position"},
    {"match without its group", "without its first group"},
};

// The limit on steps makes a match take a fifth of a second at most; sanitizers and a busy machine
// take many times that.
constexpr std::chrono::seconds kMatchTime{10};
constexpr size_t kMaxPaths = 8;

template <typename Call>
auto Timed(Call call) {
  const auto begin = std::chrono::steady_clock::now();
  auto result = call();
  Require(std::chrono::steady_clock::now() - begin < kMatchTime, "a match ends in bounded time");
  return result;
}

template <typename T>
bool RequireGood(const absl::StatusOr<T>& result) {
  if (!result.ok())
    RequireGoodError(PeftPatternTarget(), result.status(), {Reason::kMalformedConfig});
  return result.ok();
}

void MatchPath(const PythonRegex& regex, std::string_view path) {
  RegexBudget budget;
  const auto match = Timed([&] { return regex.Match(path, budget); });
  const auto full = Timed([&] { return regex.FullMatch(path, budget); });
  const auto group = Timed([&] { return regex.MatchGroup1(path, budget); });
  const bool decided = RequireGood(match) && RequireGood(full);
  if (decided) Require(*match || !*full, "what matches all of a path matches its start");
  if (RequireGood(group) && match.ok()) {
    Require(group->has_value() == *match, "a group is there exactly with a match");
    if (*group) Require(path.find(**group) != std::string_view::npos, "a group is a part of it");
    if (*group) Note(PeftPatternTarget(), kGroup);
  }
  if (match.ok() && *match) Note(PeftPatternTarget(), kMatched);
}

// re.escape
std::string Escaped(std::string_view path) {
  std::string pattern;
  for (const char c : path) {
    if (absl::ascii_ispunct(static_cast<unsigned char>(c))) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

bool IsUtf8(std::string_view text) {
  try {
    return !nlohmann::json(text).dump().empty();
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

void RequireLiteral(std::string_view path) {
  if (!IsUtf8(path) || path.size() > kMaxPatternBytes / 2) return;
  const auto regex = PythonRegex::Compile(Escaped(path));
  Require(regex.ok(), "an escaped path compiles");
  RegexBudget budget;
  const auto same = regex->FullMatch(path, budget);
  Require(same.ok() && *same, "an escaped path matches itself");
  const auto longer = regex->FullMatch(std::string(path) + "x", budget);
  Require(longer.ok() && !*longer, "an escaped path matches nothing longer");
}

// The pattern in every place of a config that takes one.
PeftConfig ConfigWith(std::string_view pattern) {
  PeftConfig config;
  config.file = "adapter_config.json";
  config.target_modules = ModuleNames{true, std::string(pattern), {}};
  config.layers_to_transform = {{0, 3}};
  config.layers_pattern = {std::string(pattern)};
  config.rank_pattern = {{{std::string(pattern), 4}}};
  return config;
}

void AskPatterns(const std::vector<std::string_view>& parts) {
  const PeftConfig config = ConfigWith(parts[0]);
  ProblemList problems;
  PeftPatterns patterns(config, problems);
  for (size_t i = 1; i < parts.size(); ++i) {
    const auto targeted = Timed([&] { return patterns.IsTargeted(parts[i]); });
    const auto ranks = Timed([&] { return patterns.RanksOf(parts[i]); });
    const auto alphas = patterns.AlphasOf(parts[i]);
    if (!targeted || !ranks) Require(problems.has_errors(), "what cannot be known has its reason");
    if (targeted == true) Note(PeftPatternTarget(), kTargeted);
    if (ranks) {
      Require(*ranks == std::vector<int64_t>{4} || *ranks == std::vector<int64_t>{8},
              "a rank is the pattern's or the default");
    }
    if (ranks && ranks->front() == 4) Note(PeftPatternTarget(), kRank);
    Require(alphas == std::vector<double>{8}, "without patterns an alpha is the default");
  }
  RequireGoodProblems(PeftPatternTarget(), problems, {Reason::kMalformedConfig});
}

void Run(std::string_view input) {
  const std::vector<std::string_view> parts = SplitAtNul(input, 1 + kMaxPaths);
  const auto regex = PythonRegex::Compile(parts[0]);
  if (RequireGood(regex)) {
    Require(regex->compiled_bytes() > 0, "a compiled pattern takes memory");
    for (size_t i = 1; i < parts.size(); ++i) MatchPath(*regex, parts[i]);
  }
  for (const std::string_view part : parts) RequireLiteral(part);
  AskPatterns(parts);
}

}  // namespace

const Target& PeftPatternTarget() {
  static constexpr Target kTarget = {"peft_pattern", Run, kDeepChecks};
  return kTarget;
}

}  // namespace adapterd::fuzz
