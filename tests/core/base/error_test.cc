#include "core/base/error.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

std::vector<Reason> AllReasons() {
  std::vector<Reason> all;
  for (int i = 0; i <= static_cast<int>(Reason::kInternal); ++i) {
    all.push_back(static_cast<Reason>(i));
  }
  return all;
}

TEST(ErrorTest, EveryReasonSurvivesTheTripThroughAStatus) {
  for (Reason reason : AllReasons()) {
    const absl::Status status = Error(reason, "what went wrong").With("tensor", "a.weight");
    EXPECT_THAT(status, HasReason(reason));
    EXPECT_EQ(status.code(), ReasonCode(reason));
    EXPECT_THAT(GetErrorDetails(status).metadata, ElementsAre(Pair("tensor", "a.weight")));
  }
}

TEST(ErrorTest, NamesAreDistinctAndUpperSnakeCase) {
  std::set<std::string_view> names;
  for (Reason reason : AllReasons()) {
    const std::string_view name = ReasonName(reason);
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_EQ(name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789"),
              std::string_view::npos)
        << name;
    EXPECT_NE(ReasonCode(reason), absl::StatusCode::kOk) << name;
  }
}

TEST(ErrorTest, MetadataKeepsItsOrderAndTakesNumbers) {
  const absl::Status status =
      Error(Reason::kShapeMismatch, "m").With("expected", "[8]").With("actual", int64_t{-7});
  EXPECT_THAT(GetErrorDetails(status).metadata,
              ElementsAre(Pair("expected", "[8]"), Pair("actual", "-7")));
}

TEST(ErrorTest, HostileValuesDoNotBreakTheEncoding) {
  using namespace std::string_literals;  // NOLINT(google-build-using-namespace): only operator""s
  const absl::Status status = Error(Reason::kMalformedTensorFile, "m")
                                  .With("tensor", "a\0INTERNAL\0b"s)
                                  .With("file", "")
                                  .With("actual", "line\nfeed \xff");
  EXPECT_THAT(status, HasReason(Reason::kMalformedTensorFile));
  EXPECT_THAT(GetErrorDetails(status).metadata,
              ElementsAre(Pair("tensor", "a?INTERNAL?b"), Pair("file", ""),
                          Pair("actual", "line\nfeed \xff")));
}

TEST(ErrorTest, TurnsIntoAStatusOr) {
  const absl::StatusOr<int> result = Error(Reason::kAdapterNotFound, "no adapter \"x\"");
  EXPECT_THAT(result, StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(result, HasMessage("no adapter \"x\""));
}

TEST(ErrorTest, StatusesOfOthersGetTheReasonOfTheirCode) {
  EXPECT_EQ(GetErrorDetails(absl::CancelledError("")).reason, Reason::kCancelled);
  EXPECT_EQ(GetErrorDetails(absl::DeadlineExceededError("")).reason, Reason::kDeadlineExceeded);
  EXPECT_EQ(GetErrorDetails(absl::UnknownError("")).reason, Reason::kInternal);
  EXPECT_THAT(GetErrorDetails(absl::UnknownError("")).metadata, IsEmpty());
}

TEST(AnnotateTest, AddsAKey) {
  const absl::Status status = Error(Reason::kShapeMismatch, "m").With("tensor", "t");
  const absl::Status annotated = Annotate(status, "adapter", "french");
  EXPECT_THAT(annotated, HasReason(Reason::kShapeMismatch));
  EXPECT_THAT(annotated, HasMessage("m"));
  EXPECT_THAT(GetErrorDetails(annotated).metadata,
              ElementsAre(Pair("tensor", "t"), Pair("adapter", "french")));
}

TEST(AnnotateTest, KeepsWhatIsThere) {
  const absl::Status status = Error(Reason::kShapeMismatch, "m").With("tensor", "inner");
  EXPECT_THAT(Annotate(status, "tensor", "outer"), HasErrorMetadata("tensor", "inner"));
}

TEST(AnnotateTest, LeavesOkAlone) {
  EXPECT_THAT(Annotate(absl::OkStatus(), "adapter", "x"), IsOk());
}

TEST(AnnotateTest, KeepsTheCodeOfStatusesOfOthers) {
  const absl::Status status = Annotate(absl::CancelledError("gone"), "adapter", "x");
  EXPECT_THAT(status, HasReason(Reason::kCancelled));
  EXPECT_THAT(status, HasMessage("gone"));
  EXPECT_THAT(status, HasErrorMetadata("adapter", "x"));
}

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return Error(Reason::kInvalidField, "odd");
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  ASSIGN_OR_RETURN(const int half, Half(value));
  RETURN_IF_ERROR(Half(half).status());
  return half / 2;
}

TEST(StatusMacrosTest, PassValuesOnAndReturnErrorsEarly) {
  ASSERT_OK_AND_ASSIGN(const int quarter, Quarter(12));
  EXPECT_EQ(quarter, 3);
  EXPECT_THAT(Quarter(3), HasReason(Reason::kInvalidField));
  EXPECT_THAT(Quarter(6), HasReason(Reason::kInvalidField));
}

}  // namespace
}  // namespace adapterd
