#include "service/page_token.h"

#include <fmt/format.h>

#include "absl/strings/numbers.h"
#include "core/base/error.h"
#include "core/base/sha256.h"

namespace adapterd {
namespace {

constexpr size_t kCheckDigits = 16;

std::string CheckDigits(const PagePosition& position, const std::string& filters) {
  Sha256 digest;
  digest.Update(fmt::format("adapterd-page\n{}\n{}\n{}", position.sequence,
                            position.last_name.size(), position.last_name));
  digest.Update(filters);
  return digest.FinishHex().substr(0, kCheckDigits);
}

}  // namespace

// CHECK.SEQUENCE.NAME: names may hold dots, numbers do not.
std::string MakePageToken(const PagePosition& position, const std::string& filters) {
  return fmt::format("{}.{}.{}", CheckDigits(position, filters), position.sequence,
                     position.last_name);
}

absl::StatusOr<PagePosition> ReadPageToken(const std::string& token, const std::string& filters) {
  const size_t begin = kCheckDigits + 1;
  const size_t dot = token.find('.', begin);
  if (dot != std::string::npos) {
    PagePosition position;
    position.last_name = token.substr(dot + 1);
    if (absl::SimpleAtoi(token.substr(begin, dot - begin), &position.sequence) &&
        MakePageToken(position, filters) == token) {
      return position;
    }
  }
  return Error(Reason::kInvalidField, "page_token: not a token of a listing with these filters")
      .With("field", "page_token");
}

}  // namespace adapterd
