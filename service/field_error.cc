#include "service/field_error.h"

#include <fmt/format.h>

#include "core/base/error.h"
#include "core/base/name.h"
#include "service/status_convert.h"

namespace adapterd {
namespace {

constexpr size_t kDigestDigits = 64;
constexpr size_t kMaxQuotedBytes = 140;  // of a caller's text in a message

}  // namespace

absl::Status FieldError(const std::string& field, const std::string& expected,
                        const std::string& found) {
  const std::string clamped = ClampUtf8(found, kMaxQuotedBytes);
  return Error(Reason::kInvalidField,
               fmt::format("{}: expected {}, found \"{}\"", field, expected, clamped))
      .With("field", field)
      .With("expected", expected)
      .With("actual", clamped);
}

absl::Status CheckAdapterName(const std::string& name, const std::string& field) {
  if (IsName(name)) return absl::OkStatus();
  return FieldError(
      field, "1 to 128 letters, digits, '_', '.' and '-' that begin with a letter, digit or '_'",
      name);
}

absl::Status CheckDigest(const std::string& digest, const std::string& field) {
  if (digest.size() == kDigestDigits &&
      digest.find_first_not_of("0123456789abcdef") == std::string::npos) {
    return absl::OkStatus();
  }
  return FieldError(field, "64 lower-case hex digits", digest);
}

}  // namespace adapterd
