// Python's `re` over PCRE2, for the patterns that PEFT configs carry.
#ifndef ADAPTERD_CORE_ADAPTER_PYTHON_REGEX_H_
#define ADAPTERD_CORE_ADAPTER_PYTHON_REGEX_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

struct pcre2_real_code_8;

namespace adapterd {

// Real target patterns of vision models have about a thousand bytes.
inline constexpr size_t kMaxPatternBytes = 65'536;
// Backtracking steps of one match. Module paths are short: honest patterns need hundreds.
inline constexpr uint32_t kRegexMatchLimit = 200'000;
inline constexpr uint32_t kRegexDepthLimit = 20'000;
inline constexpr uint32_t kRegexHeapKibibytes = 16'384;
// Compiled patterns of one source; a pattern takes a few hundred bytes, but repeats are unrolled.
inline constexpr size_t kMaxCompiledBytes = 32 << 20;
// Matching of one source, all patterns and modules together: 600 modules against 600 patterns take
// a fifth of a second.
inline constexpr absl::Duration kRegexTimeBudget = absl::Seconds(10);

// Time that the matches of one source have left. Not thread-safe.
class RegexBudget {
 public:
  explicit RegexBudget(absl::Duration budget = kRegexTimeBudget) : left_(budget) {}

  void Charge(absl::Duration spent) { left_ -= spent; }
  bool IsSpent() const { return left_ <= absl::ZeroDuration(); }

 private:
  absl::Duration left_;
};

// A compiled pattern. Movable; not thread-safe.
//
// Syntax is Python's, not PCRE2's: what Python 3.11 does not know (\Q, \K, \R, [:alpha:], verbs,
// recursion) is refused or literal as it is there, and what both spell alike but read differently
// (\Z, \v, {,n}, octal escapes) follows Python. Not supported, and refused: \N{...}, the flags a, L
// and x.
class PythonRegex {
 public:
  // MALFORMED_CONFIG with the byte position when the pattern is not valid or too large.
  static absl::StatusOr<PythonRegex> Compile(std::string_view pattern);
  ~PythonRegex();
  PythonRegex(PythonRegex&& other) noexcept;
  PythonRegex& operator=(PythonRegex&& other) noexcept;

  // What the compiled form takes in memory.
  size_t compiled_bytes() const;

  // re.match(pattern, text) and re.fullmatch(pattern, text). MALFORMED_CONFIG when a limit is hit:
  // then nobody knows the answer.
  absl::StatusOr<bool> Match(std::string_view text, RegexBudget& budget) const;
  absl::StatusOr<bool> FullMatch(std::string_view text, RegexBudget& budget) const;

  // re.match(pattern, text).group(1); nullopt when there is no match. MALFORMED_CONFIG also when
  // the group does not exist or took no part in the match.
  absl::StatusOr<std::optional<std::string>> MatchGroup1(std::string_view text,
                                                         RegexBudget& budget) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  struct Workspace;

  PythonRegex();

  // The number of groups that pcre2_match reports, 0 when there is no match.
  absl::StatusOr<int> Run(std::string_view text, uint32_t options, RegexBudget& budget) const;

  std::string pattern_;  // as Python spells it, for messages
  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
  std::unique_ptr<Workspace> workspace_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PYTHON_REGEX_H_
