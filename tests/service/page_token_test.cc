#include "service/page_token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/error.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

TEST(PageTokenTest, ATokenGivesBackItsName) {
  for (const std::string& name :
       {std::string("a"), std::string("a.b-c_d"), std::string(128, 'z')}) {
    ASSERT_OK_AND_ASSIGN(const std::string read, ReadPageToken(MakePageToken(name, "f"), "f"));
    EXPECT_EQ(read, name);
  }
}

TEST(PageTokenTest, ATokenIsBoundToItsFilters) {
  EXPECT_THAT(ReadPageToken(MakePageToken("a", "f"), "g"), HasReason(Reason::kInvalidField));
  EXPECT_THAT(ReadPageToken(MakePageToken("a", ""), "f"), HasReason(Reason::kInvalidField));
  // What moves between name and filters does not make the same token.
  EXPECT_NE(MakePageToken("a", "bc"), MakePageToken("ab", "c"));
  EXPECT_THAT(ReadPageToken(MakePageToken("ab", "c"), "bc"), HasReason(Reason::kInvalidField));
}

TEST(PageTokenTest, AnythingElseIsRefused) {
  const std::string token = MakePageToken("name", "f");
  EXPECT_THAT(ReadPageToken("", "f"), HasReason(Reason::kInvalidField));
  for (size_t length = 1; length < token.size(); ++length) {
    EXPECT_THAT(ReadPageToken(token.substr(0, length), "f"), HasReason(Reason::kInvalidField));
  }
  EXPECT_THAT(ReadPageToken(std::string(1 << 20, 'a'), "f"), HasReason(Reason::kInvalidField));
}

}  // namespace
}  // namespace adapterd
