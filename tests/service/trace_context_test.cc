#include "service/trace_context.h"

#include <gtest/gtest.h>

#include <string>

namespace adapterd {
namespace {

constexpr char kTrace[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kParent[] = "00f067aa0ba902b7";

std::string Header(const std::string& version, const std::string& trace, const std::string& parent,
                   const std::string& rest) {
  return version + "-" + trace + "-" + parent + "-" + rest;
}

TEST(TraceContextTest, TakesTheIds) {
  for (const auto& [version, rest] :
       {std::pair("00", "01"), std::pair("00", "00"), std::pair("cc", "01"),
        std::pair("cc", "01-what the future will be like")}) {
    const auto context = ParseTraceparent(Header(version, kTrace, kParent, rest));
    ASSERT_TRUE(context.has_value()) << version << rest;
    EXPECT_EQ(context->trace_id, kTrace);
    EXPECT_EQ(context->parent_id, kParent);
  }
}

TEST(TraceContextTest, IgnoresWhatIsInvalid) {
  const std::string valid = Header("00", kTrace, kParent, "01");
  for (size_t size = 0; size < valid.size(); ++size) {
    EXPECT_FALSE(ParseTraceparent(valid.substr(0, size))) << size;
    std::string spoilt = valid;
    spoilt[size] = 'G';
    EXPECT_FALSE(ParseTraceparent(spoilt)) << size;
    spoilt[size] = 'A';
    EXPECT_FALSE(ParseTraceparent(spoilt)) << size;
  }
  EXPECT_FALSE(ParseTraceparent(valid + "-00"));
  EXPECT_FALSE(ParseTraceparent(Header("cc", kTrace, kParent, "01.")));
  EXPECT_FALSE(ParseTraceparent(Header("ff", kTrace, kParent, "01")));
  EXPECT_FALSE(ParseTraceparent(Header("00", std::string(32, '0'), kParent, "01")));
  EXPECT_FALSE(ParseTraceparent(Header("00", kTrace, std::string(16, '0'), "01")));
}

}  // namespace
}  // namespace adapterd
