#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/adapter/python_regex.h"

#include <fmt/format.h>
#include <pcre2.h>

#include <chrono>
#include <new>
#include <utility>

#include "core/adapter/python_syntax.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

struct FreeCompileContext {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

template <typename T>
T* CheckAlloc(T* pointer) {
  if (pointer == nullptr) throw std::bad_alloc();
  return pointer;
}

absl::Status PatternError(std::string_view pattern, std::string_view what) {
  return Error(Reason::kMalformedConfig, fmt::format("the pattern {} {}", Quoted(pattern), what));
}

std::string Pcre2Message(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

PCRE2_SPTR Units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

struct PythonRegex::Workspace {
  std::unique_ptr<pcre2_match_data, FreeMatchData> data;
  std::unique_ptr<pcre2_match_context, FreeMatchContext> context;
};

void PythonRegex::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

PythonRegex::PythonRegex() = default;
PythonRegex::~PythonRegex() = default;
PythonRegex::PythonRegex(PythonRegex&& other) noexcept = default;
PythonRegex& PythonRegex::operator=(PythonRegex&& other) noexcept = default;

absl::StatusOr<PythonRegex> PythonRegex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return PatternError(pattern, fmt::format("has {} bytes, at most {} are allowed", pattern.size(),
                                             kMaxPatternBytes));
  }
  const auto translated = TranslatePythonRegex(pattern);
  if (!translated.ok()) {
    return PatternError(pattern, fmt::format("is not a valid regular expression: {}",
                                             std::string{translated.status().message()}));
  }
  const std::unique_ptr<pcre2_compile_context, FreeCompileContext> context(
      CheckAlloc(pcre2_compile_context_create(nullptr)));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  PythonRegex regex;
  regex.pattern_ = std::string(pattern);
  regex.code_.reset(pcre2_compile(Units(*translated), translated->size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_ALT_CIRCUMFLEX, &error, &offset,
                                  context.get()));
  if (regex.code_ == nullptr) {
    // The offset counts in the translation, which is as long as the pattern but for rare escapes.
    return PatternError(pattern, fmt::format("is not a valid regular expression: {} at position {}",
                                             Pcre2Message(error), offset));
  }
  regex.workspace_ = std::make_unique<Workspace>();
  regex.workspace_->data.reset(
      CheckAlloc(pcre2_match_data_create_from_pattern(regex.code_.get(), nullptr)));
  regex.workspace_->context.reset(CheckAlloc(pcre2_match_context_create(nullptr)));
  pcre2_match_context* limits = regex.workspace_->context.get();
  pcre2_set_match_limit(limits, kRegexMatchLimit);
  pcre2_set_depth_limit(limits, kRegexDepthLimit);
  pcre2_set_heap_limit(limits, kRegexHeapKibibytes);
  return regex;
}

size_t PythonRegex::compiled_bytes() const {
  size_t bytes = 0;
  pcre2_pattern_info(code_.get(), PCRE2_INFO_SIZE, &bytes);
  return bytes;
}

absl::StatusOr<int> PythonRegex::Run(std::string_view text, uint32_t options,
                                     RegexBudget& budget) const {
  if (budget.IsSpent()) return PatternError(pattern_, "and others take too long to match");
  const auto begin = std::chrono::steady_clock::now();
  const int groups = pcre2_match(code_.get(), Units(text), text.size(), 0, PCRE2_ANCHORED | options,
                                 workspace_->data.get(), workspace_->context.get());
  budget.Charge(absl::FromChrono(std::chrono::steady_clock::now() - begin));
  if (groups == PCRE2_ERROR_NOMATCH) return 0;
  if (groups < 0) {
    return PatternError(
        pattern_, fmt::format("cannot be decided for {}: {}", Quoted(text), Pcre2Message(groups)));
  }
  return groups;
}

absl::StatusOr<bool> PythonRegex::Match(std::string_view text, RegexBudget& budget) const {
  ASSIGN_OR_RETURN(const int groups, Run(text, 0, budget));
  return groups > 0;
}

absl::StatusOr<bool> PythonRegex::FullMatch(std::string_view text, RegexBudget& budget) const {
  ASSIGN_OR_RETURN(const int groups, Run(text, PCRE2_ENDANCHORED, budget));
  return groups > 0;
}

absl::StatusOr<std::optional<std::string>> PythonRegex::MatchGroup1(std::string_view text,
                                                                    RegexBudget& budget) const {
  ASSIGN_OR_RETURN(const int groups, Run(text, 0, budget));
  if (groups == 0) return std::nullopt;
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(workspace_->data.get());
  if (groups < 2 || range[2] == PCRE2_UNSET) {
    return PatternError(pattern_, "matched without its first group");
  }
  return std::string(text.substr(range[2], range[3] - range[2]));
}

}  // namespace adapterd
