#include "service/page_token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "core/base/error.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

TEST(PageTokenTest, ATokenGivesBackItsPosition) {
  for (const std::string& name :
       {std::string("a"), std::string("a.b-c_d"), std::string(128, 'z')}) {
    for (const int64_t sequence : {int64_t{0}, int64_t{7}, std::numeric_limits<int64_t>::max()}) {
      const PagePosition position{name, sequence};
      ASSERT_OK_AND_ASSIGN(const PagePosition read,
                           ReadPageToken(MakePageToken(position, "f"), "f"));
      EXPECT_EQ(read, position);
    }
  }
}

TEST(PageTokenTest, ATokenIsBoundToItsFilters) {
  EXPECT_THAT(ReadPageToken(MakePageToken({"a", 1}, "f"), "g"), HasReason(Reason::kInvalidField));
  EXPECT_THAT(ReadPageToken(MakePageToken({"a", 1}, ""), "f"), HasReason(Reason::kInvalidField));
  // What moves between sequence, name and filters does not make the same token.
  EXPECT_NE(MakePageToken({"a", 1}, "bc"), MakePageToken({"ab", 1}, "c"));
  EXPECT_THAT(ReadPageToken(MakePageToken({"ab", 1}, "c"), "bc"), HasReason(Reason::kInvalidField));
  EXPECT_THAT(ReadPageToken(MakePageToken({"1.a", 1}, "f"), "f").value_or(PagePosition()),
              PagePosition({"1.a", 1}));
}

TEST(PageTokenTest, AnythingElseIsRefused) {
  const std::string token = MakePageToken({"name", 12}, "f");
  EXPECT_THAT(ReadPageToken("", "f"), HasReason(Reason::kInvalidField));
  for (size_t length = 1; length < token.size(); ++length) {
    EXPECT_THAT(ReadPageToken(token.substr(0, length), "f"), HasReason(Reason::kInvalidField));
  }
  for (const char* number : {"012", "+12", " 12", "-12", "12 ", "0x12", "13", ""}) {
    std::string other = token;
    other.replace(other.find(".12.") + 1, 2, number);
    EXPECT_THAT(ReadPageToken(other, "f"), HasReason(Reason::kInvalidField)) << number;
  }
  EXPECT_THAT(ReadPageToken(std::string(1 << 20, 'a'), "f"), HasReason(Reason::kInvalidField));
  EXPECT_THAT(ReadPageToken(std::string(17, 'a') + std::string(1 << 20, '9') + ".x", "f"),
              HasReason(Reason::kInvalidField));
}

}  // namespace
}  // namespace adapterd
