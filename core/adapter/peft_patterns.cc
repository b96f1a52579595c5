#include "core/adapter/peft_patterns.h"

#include <fmt/format.h>

#include <charconv>

#include "absl/strings/match.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// Calls `visit` with `path` and with each of its tails that starts after a dot.
template <typename Visit>
bool AnyTail(std::string_view path, Visit visit) {
  while (true) {
    if (visit(path)) return true;
    const size_t dot = path.find('.');
    if (dot == std::string_view::npos) return false;
    path.remove_prefix(dot + 1);
  }
}

template <typename Number>
std::vector<std::string> KeysOf(const ModulePatterns<Number>& patterns) {
  std::vector<std::string> keys;
  keys.reserve(patterns.size());
  for (const auto& [key, number] : patterns) keys.push_back(key);
  return keys;
}

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

// The whole of `text` as a number.
std::optional<int64_t> ToNumber(std::string_view text) {
  int64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, number);
  if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
  return number;
}

// Before 0.20.0 the layer was the last number of a path, since then it is the first. What a file
// was trained with decides; a config without version is read as PEFT reads it today.
bool TakesLastLayer(std::string_view peft_version) {
  const size_t dot = peft_version.find('.');
  if (dot == std::string_view::npos || peft_version.substr(0, dot) != "0") return false;
  const std::string_view rest = peft_version.substr(dot + 1);
  const auto minor = ToNumber(rest.substr(0, rest.find('.')));
  return minor && *minor < 20;
}

}  // namespace

absl::Status PatternKeys::Compile(std::vector<std::string> keys) {
  size_t bytes = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    ASSIGN_OR_RETURN(PythonRegex pattern,
                     PythonRegex::Compile(fmt::format("(.*\\.)?({})$", keys[i])));
    bytes += pattern.compiled_bytes();
    if (bytes > kMaxCompiledBytes) {
      return Error(Reason::kMalformedConfig,
                   fmt::format("the patterns take more than {} bytes", kMaxCompiledBytes));
    }
    patterns_.push_back(std::move(pattern));
    literal_.emplace(std::move(keys[i]), i);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<size_t>> PatternKeys::FindAll(std::string_view path,
                                                         RegexBudget& budget) const {
  std::vector<size_t> found;
  for (size_t i = 0; i < patterns_.size(); ++i) {
    ASSIGN_OR_RETURN(const bool matches, patterns_[i].Match(path, budget));
    if (matches) found.push_back(i);
  }
  const auto literal = literal_.find(View(path));
  if (found.empty() && literal != literal_.end()) found.push_back(literal->second);
  return found;
}

PeftPatterns::PeftPatterns(const PeftConfig& config, ProblemList& problems)
    : config_(config), problems_(problems) {
  CompileTargets();
  CompileLayers();
  const auto compile = [this](const auto& patterns, std::string_view field,
                              std::optional<PatternKeys>& keys) {
    if (!patterns) return;
    PatternKeys compiled;
    const absl::Status status = compiled.Compile(KeysOf(*patterns));
    if (!status.ok()) return Report(status, field);
    keys = std::move(compiled);
  };
  compile(config.rank_pattern, "rank_pattern", rank_keys_);
  compile(config.alpha_pattern, "alpha_pattern", alpha_keys_);
}

void PeftPatterns::Report(const absl::Status& status, std::string_view field) {
  problems_.Add(Annotate(Annotate(status, "field", field), "file", config_.file));
}

std::optional<PythonRegex> PeftPatterns::Compile(std::string_view pattern, std::string_view field) {
  auto regex = PythonRegex::Compile(pattern);
  if (regex.ok()) return *std::move(regex);
  targets_known_ = false;
  Report(regex.status(), field);
  return std::nullopt;
}

void PeftPatterns::CompileTargets() {
  if (!config_.target_modules) {
    targets_known_ = false;
    return;
  }
  const ModuleNames& targets = *config_.target_modules;
  // PEFT expands it to the linear layers of the base model, which nobody knows here.
  const bool all_linear =
      targets.is_pattern && absl::EqualsIgnoreCase(targets.pattern, "all-linear");
  every_module_ = targets.any || all_linear;
  if (targets.is_pattern && !all_linear) {
    target_.pattern = Compile(targets.pattern, "target_modules");
  }
  target_.names.insert(targets.names.begin(), targets.names.end());
  const ModuleNames& exclude = config_.exclude_modules;
  if (exclude.is_pattern && !exclude.empty()) {
    exclude_.pattern = Compile(exclude.pattern, "exclude_modules");
  }
  exclude_.names.insert(exclude.names.begin(), exclude.names.end());
}

void PeftPatterns::CompileLayers() {
  if (!config_.layers_to_transform || config_.layers_to_transform->empty()) return;
  layer_numbers_.insert(config_.layers_to_transform->begin(), config_.layers_to_transform->end());
  const std::string_view lead = TakesLastLayer(config_.peft_version) ? ".*" : ".*?";
  std::vector<std::string> patterns = config_.layers_pattern;
  if (patterns.empty()) patterns.push_back("[^.]*");
  for (const std::string& pattern : patterns) {
    auto regex = Compile(fmt::format("{}\\.{}\\.(\\d+)\\.", lead, pattern), "layers_pattern");
    if (regex) layers_.push_back(*std::move(regex));
  }
}

absl::StatusOr<bool> PeftPatterns::Matches(const NameMatcher& matcher, std::string_view path) {
  if (matcher.pattern) return matcher.pattern->FullMatch(path, budget_);
  return AnyTail(path, [&](std::string_view tail) { return matcher.names.contains(View(tail)); });
}

absl::StatusOr<bool> PeftPatterns::InChosenLayer(std::string_view path) {
  for (const PythonRegex& pattern : layers_) {
    ASSIGN_OR_RETURN(const std::optional<std::string> group, pattern.MatchGroup1(path, budget_));
    if (!group) continue;
    const std::optional<int64_t> layer = ToNumber(*group);
    if (!layer) {
      return Error(Reason::kMalformedConfig,
                   fmt::format("layers_pattern takes {} of {} for the layer's number",
                               Quoted(*group), Quoted(path)))
          .With("field", "layers_pattern");
    }
    return layer_numbers_.contains(*layer);
  }
  return false;
}

absl::StatusOr<bool> PeftPatterns::CheckTargeted(std::string_view path) {
  AnyTail(path, [&](std::string_view tail) {
    const auto entry = target_.names.find(View(tail));
    if (entry != target_.names.end()) used_targets_.insert(*entry);
    return false;
  });
  ASSIGN_OR_RETURN(const bool excluded, Matches(exclude_, path));
  if (excluded) return false;
  if (every_module_) return true;
  if (target_.names.contains(View(path))) return true;  // the layer is not asked for
  ASSIGN_OR_RETURN(const bool named, Matches(target_, path));
  if (!named || layer_numbers_.empty()) return named;
  return InChosenLayer(path);
}

std::optional<bool> PeftPatterns::IsTargeted(std::string_view path) {
  if (!targets_known_) return std::nullopt;
  const absl::StatusOr<bool> targeted = CheckTargeted(path);
  if (targeted.ok()) return *targeted;
  targets_known_ = false;
  Report(targeted.status(), "target_modules");
  return std::nullopt;
}

template <typename Number>
std::optional<std::vector<Number>> PeftPatterns::Values(
    std::string_view path, std::string_view field,
    const std::optional<ModulePatterns<Number>>& patterns, std::optional<Number> fallback,
    std::optional<PatternKeys>& keys) {
  if (!keys) return std::nullopt;
  const auto found = keys->FindAll(path, budget_);
  if (!found.ok()) {
    keys.reset();
    Report(found.status(), field);
    return std::nullopt;
  }
  std::vector<Number> values;
  for (const size_t index : *found) values.push_back((*patterns)[index].second);
  if (!values.empty()) return values;
  if (!fallback) return std::nullopt;
  return std::vector<Number>{*fallback};
}

std::optional<std::vector<int64_t>> PeftPatterns::RanksOf(std::string_view path) {
  return Values(path, "rank_pattern", config_.rank_pattern, config_.r, rank_keys_);
}

std::optional<std::vector<double>> PeftPatterns::AlphasOf(std::string_view path) {
  return Values(path, "alpha_pattern", config_.alpha_pattern, config_.lora_alpha, alpha_keys_);
}

std::vector<std::string> PeftPatterns::UnusedTargets() const {
  std::vector<std::string> unused;
  if (!targets_known_) return unused;
  for (const std::string& name : config_.target_modules->names) {
    const bool known = used_targets_.contains(name) || exclude_.names.contains(name);
    if (!known) unused.push_back(name);
  }
  return unused;
}

}  // namespace adapterd
