// The trace that a call belongs to, as W3C Trace Context says it in the header traceparent.
#ifndef ADAPTERD_SERVICE_TRACE_CONTEXT_H_
#define ADAPTERD_SERVICE_TRACE_CONTEXT_H_

#include <optional>
#include <string>
#include <string_view>

namespace adapterd {

inline constexpr char kTraceparentHeader[] = "traceparent";

struct TraceContext {
  std::string trace_id;   // 32 hex digits
  std::string parent_id;  // 16: of the caller's span
};

// Nullopt for all that the specification calls invalid: another length, upper case, version ff, ids
// of zeros. Of versions above 00 the fields that 00 has are taken, whatever follows them.
// Source: https://www.w3.org/TR/trace-context/#traceparent-header
std::optional<TraceContext> ParseTraceparent(std::string_view header);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_TRACE_CONTEXT_H_
