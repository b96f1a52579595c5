// The one error vocabulary of the project: an absl::Status with a reason and metadata attached.
//
// Threads: everything here is a value or a pure function.
#ifndef ADAPTERD_CORE_BASE_ERROR_H_
#define ADAPTERD_CORE_BASE_ERROR_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace adapterd {

// Why a call failed, as clients see it in google.rpc.ErrorInfo.reason. Each reason has exactly one
// canonical status code (ReasonCode). Once published, a reason is never renamed.
enum class Reason {
  kInvalidField,
  kShapeMismatch,
  kUnsupportedDtype,
  kMalformedConfig,
  kMalformedTensorFile,
  kInvalidAdapter,
  kUnsupportedAdapter,
  kNonFiniteWeights,
  kNonFiniteResult,
  kUnsafeFormat,
  kPathOutsideRoot,
  kBaseModelMismatch,
  kSourceNotFound,
  kAdapterNotFound,
  kBaseModelNotFound,
  kModuleNotTargeted,
  kAdapterExists,
  kOutputExists,
  kBaseModelExists,
  kAdapterFailed,
  kAdapterDisabled,
  kAdapterPinned,
  kBaseRequired,
  kAlreadyMerged,
  kNotMerged,
  kMergedRevision,
  kNoDataDir,
  kDigestMismatch,
  kEtagMismatch,
  kRevisionMismatch,
  kSourceChanged,
  kMemoryBudgetExceeded,
  kQuotaExceeded,
  kStorageFull,
  kMessageTooLarge,
  kSequenceExpired,
  kOverloaded,
  kDraining,
  kSourceUnavailable,
  kStoreCorrupt,
  kUnauthenticated,
  kPermissionDenied,
  kNotImplemented,
  kCancelled,
  kDeadlineExceeded,
  kInternal,
};

// "INVALID_FIELD", "SHAPE_MISMATCH", ...
std::string_view ReasonName(Reason reason);

absl::StatusCode ReasonCode(Reason reason);

// Key and value, in the order they were added. Keys in use: adapter, base_model, module, tensor,
// file, field, expected, actual, needed_bytes, used_bytes, budget_bytes.
using ErrorMetadata = std::vector<std::pair<std::string, std::string>>;

// Builds an error and turns into an absl::Status (or a StatusOr) where one is returned:
//   return Error(Reason::kShapeMismatch, "...").With("tensor", name).With("expected", "[8, 64]");
class Error {
 public:
  Error(Reason reason, std::string message) : reason_(reason), message_(std::move(message)) {}

  Error&& With(std::string_view key, std::string value) && {
    metadata_.emplace_back(key, std::move(value));
    return std::move(*this);
  }
  Error&& With(std::string_view key, int64_t value) && {
    return std::move(*this).With(key, std::to_string(value));
  }

  operator absl::Status() const;  // NOLINT(google-explicit-constructor): the point of the class

 private:
  Reason reason_;
  std::string message_;
  ErrorMetadata metadata_;
};

struct ErrorDetails {
  Reason reason = Reason::kInternal;
  ErrorMetadata metadata;
};

// What `status` carries. A non-OK status that was not made by Error (cancellation, deadline, a bug)
// gets the reason that its code stands for, else kInternal. REQUIRES: !status.ok().
ErrorDetails GetErrorDetails(const absl::Status& status);

// `status` with a key added to its metadata, unless the key is there already: callers that know
// more (the adapter's name, the file) complete an error on its way up.
absl::Status Annotate(const absl::Status& status, std::string_view key, std::string_view value);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_ERROR_H_
