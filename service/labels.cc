#include "service/labels.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "service/field_error.h"

namespace adapterd {
namespace {

bool IsLowerAlnum(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }

bool IsAlnum(char c) { return IsLowerAlnum(c) || (c >= 'A' && c <= 'Z'); }

bool IsWord(std::string_view text, size_t max_bytes) {
  return !text.empty() && text.size() <= max_bytes && IsAlnum(text.front()) &&
         IsAlnum(text.back()) && std::all_of(text.begin(), text.end(), [](char c) {
           return IsAlnum(c) || c == '-' || c == '_' || c == '.';
         });
}

bool IsDnsLabel(std::string_view text) {
  return !text.empty() && IsLowerAlnum(text.front()) && IsLowerAlnum(text.back()) &&
         std::all_of(text.begin(), text.end(), [](char c) { return IsLowerAlnum(c) || c == '-'; });
}

// DNS labels joined by dots. Kubernetes bounds the whole and not each of them.
bool IsDnsSubdomain(std::string_view text) {
  if (text.size() > kMaxLabelPrefixBytes) return false;
  for (size_t dot; (dot = text.find('.')) != std::string_view::npos; text.remove_prefix(dot + 1)) {
    if (!IsDnsLabel(text.substr(0, dot))) return false;
  }
  return IsDnsLabel(text);
}

bool IsKey(std::string_view key) {
  const size_t slash = key.find('/');
  if (slash == std::string_view::npos) return IsWord(key, kMaxLabelNameBytes);
  return IsDnsSubdomain(key.substr(0, slash)) && IsWord(key.substr(slash + 1), kMaxLabelNameBytes);
}

}  // namespace

absl::StatusOr<Labels> LabelsFromProto(
    const google::protobuf::Map<std::string, std::string>& labels, const std::string& field) {
  if (labels.size() > kMaxLabels) {
    return FieldError(field, fmt::format("at most {} labels", kMaxLabels),
                      std::to_string(labels.size()));
  }
  Labels read(labels.begin(), labels.end());
  for (const auto& [key, value] : read) {
    if (!IsKey(key)) {
      return FieldError(field,
                        fmt::format("keys of 1 to {} letters, digits, '-', '_' and '.' between "
                                    "letters or digits, with or without a DNS name and '/' before",
                                    kMaxLabelNameBytes),
                        key);
    }
    if (!value.empty() && !IsWord(value, kMaxLabelValueBytes)) {
      return FieldError(field,
                        fmt::format("values of at most {} letters, digits, '-', '_' and '.' "
                                    "between letters or digits",
                                    kMaxLabelValueBytes),
                        value);
    }
  }
  return read;
}

}  // namespace adapterd
