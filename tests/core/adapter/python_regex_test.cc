#include "core/adapter/python_regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/core/adapter/python_tables.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Optional;

TEST(PythonRegexTest, AgreesWithPython) {
  ASSERT_GT(python::kRegexCases.size(), 100u);
  for (const auto& expected : python::kRegexCases) {
    SCOPED_TRACE(::testing::PrintToString(expected.pattern) + " on " +
                 ::testing::PrintToString(expected.text));
    RegexBudget budget;
    const auto regex = PythonRegex::Compile(expected.pattern);
    if (!expected.compiles) {
      EXPECT_THAT(regex, HasReason(Reason::kMalformedConfig));
      continue;
    }
    ASSERT_THAT(regex, IsOk());
    ASSERT_OK_AND_ASSIGN(const bool matches, regex->Match(expected.text, budget));
    EXPECT_EQ(matches, expected.matches);
    ASSERT_OK_AND_ASSIGN(const bool fullmatches, regex->FullMatch(expected.text, budget));
    EXPECT_EQ(fullmatches, expected.fullmatches);
  }
}

TEST(PythonRegexTest, ErrorsCarryPatternAndPosition) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"ab(c", "position 4"},
      {"a\\Qb", "bad escape \\Q at position 1"},
      {"a[b", "unterminated character set at position 1"},
      {"ab(?i)", "global flags not at the start of the expression at position 2"},
      {"a\\", "bad escape (end of pattern) at position 1"},
  };
  for (const auto& [pattern, message] : cases) {
    EXPECT_THAT(PythonRegex::Compile(pattern).status(),
                AllOf(HasReason(Reason::kMalformedConfig), HasMessage(HasSubstr(message))))
        << pattern;
  }
}

TEST(PythonRegexTest, WhatIsNotSupportedIsRefused) {
  for (const char* pattern : {"(?a)\\w", "(?x)a b", "\\N{DIGIT ONE}", "(?a:b)"}) {
    EXPECT_THAT(PythonRegex::Compile(pattern), HasReason(Reason::kMalformedConfig)) << pattern;
  }
}

TEST(PythonRegexTest, Group1) {
  RegexBudget budget;
  ASSERT_OK_AND_ASSIGN(const PythonRegex layer, PythonRegex::Compile(".*?\\.[^.]*\\.(\\d+)\\."));
  ASSERT_OK_AND_ASSIGN(const auto found, layer.MatchGroup1("model.layers.12.q_proj", budget));
  EXPECT_THAT(found, Optional(std::string("12")));
  ASSERT_OK_AND_ASSIGN(const auto none, layer.MatchGroup1("lm_head", budget));
  EXPECT_EQ(none, std::nullopt);
  for (const char* pattern : {"abc", "(x)?abc"}) {
    ASSERT_OK_AND_ASSIGN(const PythonRegex without, PythonRegex::Compile(pattern));
    EXPECT_THAT(without.MatchGroup1("abc", budget), HasReason(Reason::kMalformedConfig));
  }
  ASSERT_OK_AND_ASSIGN(const PythonRegex empty, PythonRegex::Compile("()abc"));
  ASSERT_OK_AND_ASSIGN(const auto nothing, empty.MatchGroup1("abc", budget));
  EXPECT_THAT(nothing, Optional(std::string()));
}

// Without limits these would take minutes to years.
TEST(PythonRegexTest, CatastrophicPatternsAreCutOff) {
  const std::string many_a(60, 'a');
  for (const char* pattern :
       {"(a+)+$", "(a|aa)+$", "(.*a){20}$", "(a*)*$", "(?:(?:a+)*)+$", "(a|b|ab)*(?=c)$"}) {
    SCOPED_TRACE(pattern);
    ASSERT_OK_AND_ASSIGN(const PythonRegex regex, PythonRegex::Compile(pattern));
    RegexBudget budget;
    const auto begin = absl::Now();
    const auto answer = regex.Match(many_a + "!", budget);
    EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
    if (!answer.ok()) {
      EXPECT_THAT(answer, AllOf(HasReason(Reason::kMalformedConfig),
                                HasMessage(HasSubstr("match limit exceeded"))));
    } else {
      EXPECT_FALSE(*answer);  // the engine saw it in time
    }
  }
  ASSERT_OK_AND_ASSIGN(const PythonRegex regex, PythonRegex::Compile("(a+)+$"));
  RegexBudget budget;
  EXPECT_THAT(regex.Match(many_a + "!", budget), HasReason(Reason::kMalformedConfig));
}

TEST(PythonRegexTest, ASpentBudgetEndsTheMatching) {
  ASSERT_OK_AND_ASSIGN(const PythonRegex regex, PythonRegex::Compile("a"));
  RegexBudget budget(absl::Nanoseconds(1));
  ASSERT_OK_AND_ASSIGN(const bool first, regex.Match("a", budget));
  EXPECT_TRUE(first);
  EXPECT_TRUE(budget.IsSpent());
  EXPECT_THAT(regex.Match("a", budget),
              AllOf(HasReason(Reason::kMalformedConfig), HasMessage(HasSubstr("too long"))));
}

TEST(PythonRegexTest, SizesAreBounded) {
  EXPECT_THAT(PythonRegex::Compile(std::string(kMaxPatternBytes / 4, 'a')), IsOk());
  EXPECT_THAT(PythonRegex::Compile(std::string(kMaxPatternBytes + 1, 'a')),
              HasReason(Reason::kMalformedConfig));
  EXPECT_THAT(PythonRegex::Compile(std::string(2000, '(') + std::string(2000, ')')),
              HasReason(Reason::kMalformedConfig));
  EXPECT_THAT(PythonRegex::Compile("((a{60000}){60000}){60000}"),
              HasReason(Reason::kMalformedConfig));
}

TEST(PythonRegexTest, TextThatIsNotUtf8IsAnError) {
  RegexBudget budget;
  ASSERT_OK_AND_ASSIGN(const PythonRegex regex, PythonRegex::Compile(".*"));
  EXPECT_THAT(regex.Match("a\xff", budget), HasReason(Reason::kMalformedConfig));
  EXPECT_THAT(PythonRegex::Compile("a\xff"), HasReason(Reason::kMalformedConfig));
}

TEST(PythonRegexTest, MovesKeepItsState) {
  ASSERT_OK_AND_ASSIGN(PythonRegex first, PythonRegex::Compile("a"));
  ASSERT_OK_AND_ASSIGN(PythonRegex second, PythonRegex::Compile("b"));
  second = std::move(first);
  RegexBudget budget;
  ASSERT_OK_AND_ASSIGN(const bool matches, second.Match("a", budget));
  EXPECT_TRUE(matches);
}

}  // namespace
}  // namespace adapterd
