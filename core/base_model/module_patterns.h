// Which modules of a base model a request means.
#ifndef ADAPTERD_CORE_BASE_MODEL_MODULE_PATTERNS_H_
#define ADAPTERD_CORE_BASE_MODEL_MODULE_PATTERNS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/adapter/python_regex.h"

namespace adapterd {

inline constexpr size_t kMaxModulePatterns = 10'000;  // more than any model has modules

// Each pattern is a path, the beginning of one that ends at a component ("model.layers.0" is not
// "model.layers.01"), or a regular expression that matches whole paths. None: everything matches.
// Not thread-safe: matches are counted.
class ModulePatterns {
 public:
  // INVALID_FIELD: a pattern that is empty or no regular expression; too many.
  static absl::StatusOr<ModulePatterns> Compile(const std::vector<std::string>& patterns);

  // Tries every pattern, and remembers which of them matched. INVALID_FIELD when a regular
  // expression takes too long.
  absl::StatusOr<bool> Match(std::string_view path);

  // MODULE_NOT_TARGETED with the first pattern that no path matched so far.
  absl::Status CheckAllMatched() const;

 private:
  struct Pattern {
    std::string text;
    PythonRegex regex;
    bool matched = false;
  };
  std::vector<Pattern> patterns_;
  RegexBudget budget_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_MODULE_PATTERNS_H_
