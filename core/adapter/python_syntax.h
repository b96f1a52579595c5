// Rewrites a Python regular expression into PCRE2's dialect.
#ifndef ADAPTERD_CORE_ADAPTER_PYTHON_SYNTAX_H_
#define ADAPTERD_CORE_ADAPTER_PYTHON_SYNTAX_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace adapterd {

// `pattern` is UTF-8. The result, compiled with PCRE2_UTF, PCRE2_UCP and newline LF, matches what
// Python 3.11's `re` matches. INVALID_ARGUMENT with the byte position in the message for what
// Python refuses at the level of single tokens, or what is not supported here; structure (groups
// that do not close, quantifiers without anything to repeat) is left to PCRE2's own errors.
absl::StatusOr<std::string> TranslatePythonRegex(std::string_view pattern);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PYTHON_SYNTAX_H_
