#include "service/status_convert.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/rpc_matchers.h"

namespace adapterd {
namespace {

using ::testing::EndsWith;

// Every reason that our code can give, by walking the enum.
std::vector<Reason> AllReasons() {
  std::vector<Reason> reasons;
  for (int i = 0; i <= static_cast<int>(Reason::kInternal); ++i) {
    reasons.push_back(static_cast<Reason>(i));
  }
  return reasons;
}

TEST(StatusConvertTest, OkIsOk) { EXPECT_THAT(ToGrpcStatus(absl::OkStatus()), IsRpcOk()); }

TEST(StatusConvertTest, EveryReasonTravelsWithItsCodeAndMetadata) {
  for (const Reason reason : AllReasons()) {
    const grpc::Status status =
        ToGrpcStatus(Error(reason, "what happened").With("adapter", "x").With("needed_bytes", 12));
    EXPECT_THAT(status, IsRpcError(reason));
    EXPECT_THAT(status, HasRpcMessage("what happened"));
    EXPECT_THAT(status, HasRpcMetadata("adapter", "x"));
    EXPECT_THAT(status, HasRpcMetadata("needed_bytes", "12"));
  }
}

TEST(StatusConvertTest, StatusesWithoutAReasonGetTheirCodes) {
  EXPECT_THAT(ToGrpcStatus(absl::CancelledError("c")), IsRpcError(Reason::kCancelled));
  EXPECT_THAT(ToGrpcStatus(absl::DeadlineExceededError("d")),
              IsRpcError(Reason::kDeadlineExceeded));
  EXPECT_THAT(ToGrpcStatus(absl::InternalError("bug")), IsRpcError(Reason::kInternal));
}

TEST(StatusConvertTest, OnlyWhatPassesByItselfHasARetryHint) {
  for (const Reason reason : AllReasons()) {
    const auto details = DetailsOf(ToGrpcStatus(Error(reason, "m")));
    const bool passes = reason == Reason::kOverloaded || reason == Reason::kDraining;
    EXPECT_EQ(details->retry.has_value(), passes) << ReasonName(reason);
    if (!passes) continue;
    EXPECT_EQ(details->retry->retry_delay().seconds(), 0);
    EXPECT_GT(details->retry->retry_delay().nanos(), 0);
  }
}

TEST(StatusConvertTest, HugeErrorsStayBelowTheLimits) {
  // IsRpcError checks both sizes.
  const std::string huge(1 << 20, 'x');
  absl::Status status = Error(Reason::kOverloaded, huge);
  for (const char* key : {"adapter", "module", "tensor", "file", "field", "expected", "actual",
                          "needed_bytes", "used_bytes", "budget_bytes"}) {
    status = Annotate(status, key, huge);
  }
  const grpc::Status converted = ToGrpcStatus(status);
  EXPECT_THAT(converted, IsRpcError(Reason::kOverloaded));
  EXPECT_THAT(converted, HasRpcMessage(EndsWith("...")));
  EXPECT_THAT(converted, HasRpcMetadata("adapter", EndsWith("...")));

  absl::Status many = Error(Reason::kOverloaded, huge);
  for (int i = 0; i < 1000; ++i) many = Annotate(many, fmt::format("k{}", i), "v");
  EXPECT_THAT(ToGrpcStatus(many), IsRpcError(Reason::kOverloaded));
}

TEST(StatusConvertTest, TextThatIsNotUtf8IsMadeSo) {
  // A stray byte, two cut sequences, a surrogate, an overlong slash, a lead byte beyond Unicode.
  const std::string broken = "a\xff\xc3+\xe2\x82z\xed\xa0\x80\xc0\xaf\xf5";
  const grpc::Status status =
      ToGrpcStatus(Error(Reason::kMalformedTensorFile, broken).With("tensor", broken));
  EXPECT_THAT(status, IsRpcError(Reason::kMalformedTensorFile));
  EXPECT_THAT(status, HasRpcMessage("a??+??z??????"));
  EXPECT_THAT(status, HasRpcMetadata("tensor", status.error_message()));
}

TEST(ClampUtf8Test, ValidTextIsKept) {
  for (const char* text : {"", "plain", "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", "tab\tnl\n"}) {
    EXPECT_EQ(ClampUtf8(text, 100), text);
  }
}

TEST(ClampUtf8Test, LongTextIsCutBetweenCharacters) {
  EXPECT_EQ(ClampUtf8("abcdefgh", 8), "abcdefgh");
  EXPECT_EQ(ClampUtf8("abcdefghi", 8), "abcde...");
  // Four bytes a character: two fit into 11 - 3.
  EXPECT_EQ(ClampUtf8("\xf0\x9f\x98\x80\xf0\x9f\x98\x80\xf0\x9f\x98\x80", 11),
            "\xf0\x9f\x98\x80\xf0\x9f\x98\x80...");
  EXPECT_EQ(ClampUtf8("\xf0\x9f\x98\x80\xf0\x9f\x98\x80\xf0\x9f\x98\x80", 10),
            "\xf0\x9f\x98\x80...");
}

TEST(ClampUtf8Test, EveryCutOfBrokenTextIsValidAndShortEnough) {
  std::string text;
  for (int i = 0; i < 300; ++i) text.push_back(static_cast<char>(i * 37));
  for (size_t limit = 3; limit < 310; ++limit) {
    const std::string clamped = ClampUtf8(text, limit);
    EXPECT_LE(clamped.size(), limit);
    EXPECT_EQ(ClampUtf8(clamped, limit), clamped);  // nothing left to mend
  }
}

}  // namespace
}  // namespace adapterd
