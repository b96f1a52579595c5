// The only way from absl::Status to grpc::Status.
#ifndef ADAPTERD_SERVICE_STATUS_CONVERT_H_
#define ADAPTERD_SERVICE_STATUS_CONVERT_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"

namespace adapterd {

// A message and its details travel in trailers, which clients limit to 8 KB together.
inline constexpr size_t kMaxErrorMessageBytes = 1000;
inline constexpr size_t kMaxErrorBytes = 4000;  // message and details
inline constexpr size_t kMaxMetadataValueBytes = 256;

// Carries one google.rpc.ErrorInfo (domain "adapterd") and, with OVERLOADED and DRAINING, a
// RetryInfo.
grpc::Status ToGrpcStatus(const absl::Status& status);

// `text` as valid UTF-8 of at most `max_bytes`: bytes that are not UTF-8 become '?', and a cut text
// ends in "...". Errors quote hostile files.
std::string ClampUtf8(std::string text, size_t max_bytes);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_STATUS_CONVERT_H_
