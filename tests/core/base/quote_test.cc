#include "core/base/quote.h"

#include <gtest/gtest.h>

#include <string>

namespace adapterd {
namespace {

TEST(QuoteTest, PlainTextPasses) {
  EXPECT_EQ(Printable("model.layers.0.weight"), "model.layers.0.weight");
  EXPECT_EQ(Quoted("model.layers.0.weight"), "\"model.layers.0.weight\"");
  EXPECT_EQ(Quoted(""), "\"\"");
  EXPECT_EQ(Printable("na\u00efve \u6a21\u578b \U0001f600"), "na\u00efve \u6a21\u578b \U0001f600");
}

TEST(QuoteTest, QuotesAndBackslashesAreEscapedInQuotesOnly) {
  EXPECT_EQ(Quoted(R"(a"b\c)"), R"("a\"b\\c")");
  EXPECT_EQ(Printable(R"(a"b\c)"), R"(a"b\c)");
}

TEST(QuoteTest, ControlCharactersBecomeHex) {
  EXPECT_EQ(Printable(std::string_view("a\0b\n\r\t\x1b[31m\x7f", 12)),
            "a\\x00b\\x0a\\x0d\\x09\\x1b[31m\\x7f");
  EXPECT_EQ(Printable("\u0085"), "\\xc2\\x85");       // a control of the upper half
  EXPECT_EQ(Printable("\u202e"), "\\xe2\\x80\\xae");  // right-to-left override
  EXPECT_EQ(Printable("\u2028"), "\\xe2\\x80\\xa8");  // line separator
  EXPECT_EQ(Printable("\ufeff"), "\\xef\\xbb\\xbf");  // byte order mark
}

TEST(QuoteTest, BrokenUtf8BecomesHex) {
  EXPECT_EQ(Printable("\xff"), "\\xff");
  EXPECT_EQ(Printable("a\xc3"), "a\\xc3");                           // cut short
  EXPECT_EQ(Printable("\xc0\xaf"), "\\xc0\\xaf");                    // overlong
  EXPECT_EQ(Printable("\xe0\x80\xaf"), "\\xe0\\x80\\xaf");           // overlong
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // a surrogate
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // beyond Unicode
  EXPECT_EQ(Printable("\xe2\x82z"), "\\xe2\\x82z");
}

TEST(QuoteTest, LongTextLosesItsMiddle) {
  EXPECT_EQ(Printable(std::string(100, 'a')), std::string(100, 'a'));
  const std::string name = "begin" + std::string(1000, '.') + "end";
  const std::string cut = Printable(name);
  EXPECT_EQ(cut.size(), kMaxQuotedBytes + 3);
  EXPECT_TRUE(cut.starts_with("begin."));
  EXPECT_TRUE(cut.ends_with(".end"));
}

TEST(QuoteTest, CutsBetweenCodePoints) {
  // Whatever the cut falls on, no euro sign is torn apart.
  for (int shift = 0; shift < 6; ++shift) {
    std::string text(shift, 'x');
    for (int i = 0; i < 100; ++i) text += "\u20ac";
    EXPECT_EQ(Printable(text).find("\\x"), std::string::npos) << shift;
  }
}

TEST(QuoteTest, TheWorstTextStaysShort) {
  EXPECT_LE(Quoted(std::string(1'000'000, '\xff')).size(), 4 * kMaxQuotedBytes + 5);
}

}  // namespace
}  // namespace adapterd
