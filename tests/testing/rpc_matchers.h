// GoogleTest matchers for what a gRPC client gets to see of an error.
#ifndef ADAPTERD_TESTS_TESTING_RPC_MATCHERS_H_
#define ADAPTERD_TESTS_TESTING_RPC_MATCHERS_H_

#include <gmock/gmock.h>
#include <google/protobuf/message.h>
#include <grpcpp/support/status.h>

#include <concepts>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "service/rpc_status.pb.h"

namespace grpc {

// GoogleTest finds this to print a status by what it says.
inline void PrintTo(const Status& status, std::ostream* os) {
  *os << "code " << status.error_code() << " \"" << status.error_message() << "\"";
}

}  // namespace grpc

namespace adapterd::v1 {

// GoogleTest's own way to print a message, inlined, makes GCC 12 warn of overflows that are none.
template <std::derived_from<google::protobuf::Message> Message>
void PrintTo(const Message& message, std::ostream* os) {
  *os << message.ShortDebugString();
}

}  // namespace adapterd::v1

namespace adapterd {

// The details of an error: what grpc-status-details-bin holds.
struct RpcDetails {
  google::rpc::Status status;
  std::vector<google::rpc::ErrorInfo> infos;
  std::optional<google::rpc::RetryInfo> retry;
};

// nullopt when they cannot be read.
inline std::optional<RpcDetails> DetailsOf(const grpc::Status& status) {
  RpcDetails details;
  if (!details.status.ParseFromString(status.error_details())) return std::nullopt;
  for (const google::protobuf::Any& any : details.status.details()) {
    if (any.type_url() == "type.googleapis.com/google.rpc.ErrorInfo") {
      if (!details.infos.emplace_back().ParseFromString(any.value())) return std::nullopt;
    } else if (any.type_url() == "type.googleapis.com/google.rpc.RetryInfo") {
      if (!details.retry.emplace().ParseFromString(any.value())) return std::nullopt;
    } else {
      return std::nullopt;
    }
  }
  return details;
}

MATCHER(IsRpcOk, negation ? "is an error" : "is OK") {
  *result_listener << arg.error_message();
  return arg.ok();
}

// The reason, the code that belongs to it, and everything that holds for all of our errors: one
// ErrorInfo of our domain, the message twice, and the sizes.
MATCHER_P(IsRpcError, reason,
          std::string(negation ? "is not" : "is") + " the error " +
              std::string(ReasonName(reason))) {
  *result_listener << "\"" << arg.error_message() << "\"";
  if (arg.ok() || static_cast<int>(arg.error_code()) != static_cast<int>(ReasonCode(reason))) {
    *result_listener << ", code " << arg.error_code();
    return false;
  }
  const std::optional<RpcDetails> details = DetailsOf(arg);
  if (!details || details->infos.size() != 1) {
    *result_listener << ", without one ErrorInfo";
    return false;
  }
  *result_listener << ", " << details->infos[0].ShortDebugString();
  return details->infos[0].reason() == ReasonName(reason) &&
         details->infos[0].domain() == "adapterd" &&
         details->status.code() == static_cast<int>(arg.error_code()) &&
         details->status.message() == arg.error_message() && !arg.error_message().empty() &&
         arg.error_message().size() < 1024 &&
         arg.error_message().size() + arg.error_details().size() < 4096;
}

// EXPECT_THAT(status, HasRpcMetadata("field", "input")); the value may be a matcher.
MATCHER_P2(HasRpcMetadata, key, value,
           std::string("metadata ") + key + " " +
               ::testing::DescribeMatcher<std::string>(value, negation)) {
  const std::optional<RpcDetails> details = DetailsOf(arg);
  if (!details || details->infos.size() != 1) return false;
  *result_listener << details->infos[0].ShortDebugString();
  const auto found = details->infos[0].metadata().find(key);
  return found != details->infos[0].metadata().end() &&
         ::testing::Value(std::string(found->second), value);
}

MATCHER_P(HasRpcMessage, matcher,
          "message " + ::testing::DescribeMatcher<std::string>(matcher, negation)) {
  *result_listener << arg.error_message();
  return ::testing::Matches(matcher)(arg.error_message());
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_RPC_MATCHERS_H_
