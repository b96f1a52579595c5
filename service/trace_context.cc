#include "service/trace_context.h"

namespace adapterd {
namespace {

constexpr size_t kVersion = 2;
constexpr size_t kTraceId = 32;
constexpr size_t kParentId = 16;
constexpr size_t kFlags = 2;
constexpr size_t kLength = kVersion + 1 + kTraceId + 1 + kParentId + 1 + kFlags;

bool IsHex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool IsId(std::string_view text) {
  return IsHex(text) && text.find_first_not_of('0') != std::string_view::npos;
}

}  // namespace

std::optional<TraceContext> ParseTraceparent(std::string_view header) {
  if (header.size() < kLength) return std::nullopt;
  const std::string_view version = header.substr(0, kVersion);
  if (!IsHex(version) || version == "ff") return std::nullopt;
  const bool ends_rightly = header.size() == kLength || (version != "00" && header[kLength] == '-');
  if (!ends_rightly) return std::nullopt;
  const size_t trace_at = kVersion + 1;
  const size_t parent_at = trace_at + kTraceId + 1;
  const size_t flags_at = parent_at + kParentId + 1;
  for (const size_t at : {trace_at, parent_at, flags_at}) {
    if (header[at - 1] != '-') return std::nullopt;
  }
  const std::string_view trace = header.substr(trace_at, kTraceId);
  const std::string_view parent = header.substr(parent_at, kParentId);
  if (!IsId(trace) || !IsId(parent) || !IsHex(header.substr(flags_at, kFlags))) return std::nullopt;
  return TraceContext{std::string(trace), std::string(parent)};
}

}  // namespace adapterd
