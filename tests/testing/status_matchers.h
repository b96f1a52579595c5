// GoogleTest matchers for absl::Status and absl::StatusOr. Debian 12's Abseil has none.
#ifndef ADAPTERD_TESTS_TESTING_STATUS_MATCHERS_H_
#define ADAPTERD_TESTS_TESTING_STATUS_MATCHERS_H_

#include <gmock/gmock.h>

#include <ostream>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {

// GoogleTest finds this to print a reason by its name.
inline void PrintTo(Reason reason, std::ostream* os) { *os << ReasonName(reason); }

namespace testing_internal {

inline const absl::Status& GetStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& result) {
  return result.status();
}

}  // namespace testing_internal

MATCHER(IsOk, negation ? "is an error" : "is OK") {
  const absl::Status& status = testing_internal::GetStatus(arg);
  *result_listener << status;
  return status.ok();
}

// EXPECT_THAT(F(), StatusIs(absl::StatusCode::kNotFound))
MATCHER_P(StatusIs, code,
          std::string(negation ? "has not" : "has") + " the code " +
              absl::StatusCodeToString(code)) {
  const absl::Status& status = testing_internal::GetStatus(arg);
  *result_listener << status;
  return status.code() == code;
}

// EXPECT_THAT(F(), HasReason(Reason::kShapeMismatch)): the reason, and the code that belongs to it.
MATCHER_P(HasReason, reason,
          std::string(negation ? "has not" : "has") + " the reason " +
              std::string(ReasonName(reason))) {
  const absl::Status& status = testing_internal::GetStatus(arg);
  *result_listener << status;
  return !status.ok() && GetErrorDetails(status).reason == reason &&
         status.code() == ReasonCode(reason);
}

// EXPECT_THAT(F(), HasMessage(HasSubstr("layer 3"))); OK has the empty message.
MATCHER_P(HasMessage, matcher,
          "message " + ::testing::DescribeMatcher<std::string>(matcher, negation)) {
  const absl::Status& status = testing_internal::GetStatus(arg);
  *result_listener << status;
  const std::string message{status.message().data(), status.message().size()};
  return ::testing::Matches(matcher)(message);
}

// EXPECT_THAT(F(), HasErrorMetadata("tensor", "a.weight")); the value may be a matcher.
MATCHER_P2(HasErrorMetadata, key, value,
           std::string("metadata ") + key + " " +
               ::testing::DescribeMatcher<std::string>(value, negation)) {
  const absl::Status& status = testing_internal::GetStatus(arg);
  *result_listener << status;
  if (status.ok()) return false;
  for (const auto& [present, text] : GetErrorDetails(status).metadata) {
    if (present != key) continue;
    *result_listener << ", where " << present << " is " << text;
    return ::testing::Value(text, value);
  }
  return false;
}

}  // namespace adapterd

// ASSERT_OK_AND_ASSIGN(auto x, F()): x takes the value, or the test ends. `lhs` may be a
// declaration, so it cannot be put in parentheses. NOLINTBEGIN(bugprone-macro-parentheses)
#define ASSERT_OK_AND_ASSIGN(lhs, expr) \
  ASSERT_OK_AND_ASSIGN_INNER(ADAPTERD_CONCAT(adapterd_or_, __LINE__), lhs, expr)
#define ASSERT_OK_AND_ASSIGN_INNER(var, lhs, expr) \
  auto var = (expr);                               \
  ASSERT_THAT(var, ::adapterd::IsOk());            \
  lhs = *std::move(var)
// NOLINTEND(bugprone-macro-parentheses)

#endif  // ADAPTERD_TESTS_TESTING_STATUS_MATCHERS_H_
