#include "service/page_token.h"

#include "core/base/error.h"
#include "core/base/sha256.h"

namespace adapterd {
namespace {

constexpr size_t kCheckDigits = 16;

std::string CheckDigits(const std::string& name, const std::string& filters) {
  Sha256 digest;
  digest.Update(std::string_view("adapterd-page\n"));
  digest.Update(std::to_string(name.size()) + "\n" + name);
  digest.Update(filters);
  return digest.FinishHex().substr(0, kCheckDigits);
}

}  // namespace

std::string MakePageToken(const std::string& last_name, const std::string& filters) {
  return CheckDigits(last_name, filters) + "." + last_name;
}

absl::StatusOr<std::string> ReadPageToken(const std::string& token, const std::string& filters) {
  if (token.size() > kCheckDigits + 1) {
    std::string name = token.substr(kCheckDigits + 1);
    if (MakePageToken(name, filters) == token) return name;
  }
  return Error(Reason::kInvalidField, "page_token: not a token of a listing with these filters")
      .With("field", "page_token");
}

}  // namespace adapterd
