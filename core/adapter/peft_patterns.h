// Which modules a PEFT config targets, and their rank and alpha: PEFT's matching rules, exactly
// (peft/tuners/tuners_utils.py check_target_module_exists, peft/utils/other.py get_pattern_key).
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_PATTERNS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_PATTERNS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "core/adapter/peft_config.h"
#include "core/adapter/problems.h"
#include "core/adapter/python_regex.h"

namespace adapterd {

// The keys of rank_pattern or alpha_pattern. Not thread-safe.
class PatternKeys {
 public:
  // MALFORMED_CONFIG when a key is not a regular expression.
  absl::Status Compile(std::vector<std::string> keys);

  // The keys, in file order, with re.match(rf"(.*\.)?({key})$", path); else the key that equals
  // `path`; else none.
  absl::StatusOr<std::vector<size_t>> FindAll(std::string_view path, RegexBudget& budget) const;

 private:
  std::vector<PythonRegex> patterns_;
  absl::flat_hash_map<std::string, size_t> literal_;
};

// Answers about module paths (without "base_model.model."). nullopt: cannot be known, because the
// config is wrong there; the reason is among the problems, once. Not thread-safe; keeps references.
class PeftPatterns {
 public:
  PeftPatterns(const PeftConfig& config, ProblemList& problems);

  std::optional<bool> IsTargeted(std::string_view path);

  // The values of all patterns that match, in file order, or the default alone. PEFT takes the
  // first. The others matter because it sorts the patterns when it saves: the first of the file
  // need not be the first that the training saw.
  std::optional<std::vector<int64_t>> RanksOf(std::string_view path);
  std::optional<std::vector<double>> AlphasOf(std::string_view path);

  // Entries of a target_modules list that no path asked for so far ends with.
  std::vector<std::string> UnusedTargets() const;

 private:
  // A list of names, or one pattern.
  struct NameMatcher {
    std::optional<PythonRegex> pattern;
    absl::flat_hash_set<std::string> names;
  };

  void CompileTargets();
  void CompileLayers();
  template <typename Number>
  std::optional<std::vector<Number>> Values(std::string_view path, std::string_view field,
                                            const std::optional<ModulePatterns<Number>>& patterns,
                                            std::optional<Number> fallback,
                                            std::optional<PatternKeys>& keys);
  std::optional<PythonRegex> Compile(std::string_view pattern, std::string_view field);
  void Report(const absl::Status& status, std::string_view field);

  absl::StatusOr<bool> Matches(const NameMatcher& matcher, std::string_view path);
  absl::StatusOr<bool> CheckTargeted(std::string_view path);
  absl::StatusOr<bool> InChosenLayer(std::string_view path);

  const PeftConfig& config_;
  ProblemList& problems_;
  RegexBudget budget_;
  bool targets_known_ = true;
  bool every_module_ = false;
  NameMatcher target_;
  NameMatcher exclude_;
  std::vector<PythonRegex> layers_;
  absl::flat_hash_set<int64_t> layer_numbers_;
  absl::flat_hash_set<std::string> used_targets_;
  std::optional<PatternKeys> rank_keys_;
  std::optional<PatternKeys> alpha_keys_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_PATTERNS_H_
