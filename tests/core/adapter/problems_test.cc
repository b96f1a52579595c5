#include "core/adapter/problems.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Problem Make(Severity severity, std::string message) {
  Problem problem;
  problem.severity = severity;
  problem.reason = Reason::kInvalidAdapter;
  problem.message = std::move(message);
  return problem;
}

TEST(ProblemListTest, NothingIsOk) {
  ProblemList problems;
  EXPECT_FALSE(problems.has_errors());
  EXPECT_THAT(problems.ToStatus(), IsOk());
  problems.Add(absl::OkStatus());
  EXPECT_TRUE(problems.items().empty());
}

TEST(ProblemListTest, WarningsAloneAreOk) {
  ProblemList problems;
  problems.Add(Make(Severity::kWarning, "first"));
  problems.Add(Make(Severity::kWarning, "second"));
  EXPECT_FALSE(problems.has_errors());
  EXPECT_THAT(problems.ToStatus(), IsOk());
  EXPECT_THAT(problems.warnings(), ElementsAre("first", "second"));
}

TEST(ProblemListTest, StatusIsTheFirstErrorWithItsMetadata) {
  ProblemList problems;
  problems.Add(Make(Severity::kWarning, "warning"));
  Problem first = Make(Severity::kError, "broken");
  first.file = "f";
  first.tensor = "t";
  first.module = "m";
  first.field = "k";
  first.expected = "2";
  first.actual = "3";
  problems.Add(first);
  const absl::Status one = problems.ToStatus();
  EXPECT_THAT(one, HasReason(Reason::kInvalidAdapter));
  EXPECT_THAT(one, HasMessage(std::string("broken")));
  for (const auto& [key, value] : ErrorMetadata{{"file", "f"},
                                                {"tensor", "t"},
                                                {"module", "m"},
                                                {"field", "k"},
                                                {"expected", "2"},
                                                {"actual", "3"}}) {
    EXPECT_THAT(one, HasErrorMetadata(key, value));
  }
  problems.Add(Make(Severity::kError, "more"));
  EXPECT_THAT(problems.ToStatus(), HasMessage(std::string("broken (and 1 more error)")));
  problems.Add(Make(Severity::kError, "and more"));
  EXPECT_THAT(problems.ToStatus(), HasMessage(std::string("broken (and 2 more errors)")));
}

TEST(ProblemListTest, StatusesFillTheFields) {
  ProblemList problems;
  problems.Add(Error(Reason::kMalformedTensorFile, "bad header")
                   .With("file", "w.safetensors")
                   .With("tensor", "a")
                   .With("expected", "x")
                   .With("needed_bytes", int64_t{3}));
  problems.Add(absl::CancelledError("gone"));
  ASSERT_EQ(problems.items().size(), 2u);
  const Problem& problem = problems.items()[0];
  EXPECT_EQ(problem.reason, Reason::kMalformedTensorFile);
  EXPECT_EQ(problem.severity, Severity::kError);
  EXPECT_EQ(problem.message, "bad header");
  EXPECT_EQ(problem.file, "w.safetensors");
  EXPECT_EQ(problem.tensor, "a");
  EXPECT_EQ(problem.expected, "x");
  EXPECT_EQ(problems.items()[1].reason, Reason::kCancelled);
}

TEST(ProblemListTest, KeepsAThousandAndCountsTheRest) {
  ProblemList problems;
  for (size_t i = 0; i < kMaxProblems + 200; ++i) {
    problems.Add(Make(Severity::kError, "error " + std::to_string(i)));
  }
  problems.Add(Make(Severity::kWarning, "late"));
  EXPECT_EQ(problems.items().size(), kMaxProblems);
  EXPECT_EQ(problems.items().back().message, "error 999");
  EXPECT_THAT(problems.ToStatus(), HasMessage(HasSubstr("and 1199 more errors")));
}

TEST(ProblemListTest, ErrorsPushOutTheLatestWarnings) {
  ProblemList problems;
  problems.Add(Make(Severity::kError, "e0"));
  for (size_t i = 0; i + 1 < kMaxProblems; ++i) {
    problems.Add(Make(Severity::kWarning, fmt::format("w{}", i)));
  }
  problems.Add(Make(Severity::kError, "e1"));
  problems.Add(Make(Severity::kError, "e2"));
  EXPECT_EQ(problems.items().size(), kMaxProblems);
  EXPECT_EQ(problems.warnings().size(), kMaxProblems - 3);
  EXPECT_EQ(problems.warnings().front(), "w0");
  EXPECT_EQ(problems.warnings().back(), "w996");
  EXPECT_EQ(problems.items().front().message, "e0");
  EXPECT_EQ(problems.items().back().message, "e2");
}

}  // namespace
}  // namespace adapterd
