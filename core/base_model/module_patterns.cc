#include "core/base_model/module_patterns.h"

#include <fmt/format.h>

#include <utility>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

absl::Status Invalid(std::string_view what) {
  return Error(Reason::kInvalidField, fmt::format("modules: {}", what)).With("field", "modules");
}

bool IsPrefix(std::string_view prefix, std::string_view path) {
  return path.starts_with(prefix) && (path.size() == prefix.size() || path[prefix.size()] == '.');
}

}  // namespace

absl::StatusOr<ModulePatterns> ModulePatterns::Compile(const std::vector<std::string>& patterns) {
  if (patterns.size() > kMaxModulePatterns) {
    return Invalid(
        fmt::format("expected at most {} patterns, found {}", kMaxModulePatterns, patterns.size()));
  }
  ModulePatterns compiled;
  size_t bytes = 0;
  for (const std::string& text : patterns) {
    if (text.empty()) return Invalid("a pattern is empty");
    absl::StatusOr<PythonRegex> regex = PythonRegex::Compile(text);
    if (!regex.ok()) return Invalid(std::string(regex.status().message()));
    bytes += regex->compiled_bytes();
    if (bytes > kMaxCompiledBytes) {
      return Invalid(fmt::format("the patterns take more than {} bytes", kMaxCompiledBytes));
    }
    compiled.patterns_.push_back({text, *std::move(regex)});
  }
  return compiled;
}

absl::StatusOr<bool> ModulePatterns::Match(std::string_view path) {
  bool any = patterns_.empty();
  for (Pattern& pattern : patterns_) {
    bool matches = IsPrefix(pattern.text, path);
    if (!matches) {
      const absl::StatusOr<bool> found = pattern.regex.FullMatch(path, budget_);
      if (!found.ok()) return Invalid(std::string(found.status().message()));
      matches = *found;
    }
    pattern.matched |= matches;
    any |= matches;
  }
  return any;
}

absl::Status ModulePatterns::CheckAllMatched() const {
  for (const Pattern& pattern : patterns_) {
    if (pattern.matched) continue;
    return Error(Reason::kModuleNotTargeted,
                 fmt::format("modules: {} matches no module", Quoted(pattern.text)))
        .With("field", "modules")
        .With("expected", Printable(pattern.text));
  }
  return absl::OkStatus();
}

}  // namespace adapterd
