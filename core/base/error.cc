#include "core/base/error.h"

#include <algorithm>
#include <array>
#include <optional>

#include "absl/strings/cord.h"

namespace adapterd {
namespace {

constexpr char kPayloadUrl[] = "adapterd/error";

struct ReasonEntry {
  Reason reason;
  std::string_view name;
  absl::StatusCode code;
};

using Code = absl::StatusCode;

constexpr std::array kReasons = {
    ReasonEntry{Reason::kInvalidField, "INVALID_FIELD", Code::kInvalidArgument},
    ReasonEntry{Reason::kShapeMismatch, "SHAPE_MISMATCH", Code::kInvalidArgument},
    ReasonEntry{Reason::kUnsupportedDtype, "UNSUPPORTED_DTYPE", Code::kInvalidArgument},
    ReasonEntry{Reason::kMalformedConfig, "MALFORMED_CONFIG", Code::kInvalidArgument},
    ReasonEntry{Reason::kMalformedTensorFile, "MALFORMED_TENSOR_FILE", Code::kInvalidArgument},
    ReasonEntry{Reason::kInvalidAdapter, "INVALID_ADAPTER", Code::kInvalidArgument},
    ReasonEntry{Reason::kUnsupportedAdapter, "UNSUPPORTED_ADAPTER", Code::kInvalidArgument},
    ReasonEntry{Reason::kNonFiniteWeights, "NON_FINITE_WEIGHTS", Code::kInvalidArgument},
    ReasonEntry{Reason::kNonFiniteResult, "NON_FINITE_RESULT", Code::kInvalidArgument},
    ReasonEntry{Reason::kUnsafeFormat, "UNSAFE_FORMAT", Code::kInvalidArgument},
    ReasonEntry{Reason::kPathOutsideRoot, "PATH_OUTSIDE_ROOT", Code::kInvalidArgument},
    ReasonEntry{Reason::kBaseModelMismatch, "BASE_MODEL_MISMATCH", Code::kInvalidArgument},
    ReasonEntry{Reason::kSourceNotFound, "SOURCE_NOT_FOUND", Code::kNotFound},
    ReasonEntry{Reason::kAdapterNotFound, "ADAPTER_NOT_FOUND", Code::kNotFound},
    ReasonEntry{Reason::kBaseModelNotFound, "BASE_MODEL_NOT_FOUND", Code::kNotFound},
    ReasonEntry{Reason::kModuleNotTargeted, "MODULE_NOT_TARGETED", Code::kNotFound},
    ReasonEntry{Reason::kAdapterExists, "ADAPTER_EXISTS", Code::kAlreadyExists},
    ReasonEntry{Reason::kOutputExists, "OUTPUT_EXISTS", Code::kAlreadyExists},
    ReasonEntry{Reason::kBaseModelExists, "BASE_MODEL_EXISTS", Code::kAlreadyExists},
    ReasonEntry{Reason::kAdapterFailed, "ADAPTER_FAILED", Code::kFailedPrecondition},
    ReasonEntry{Reason::kAdapterDisabled, "ADAPTER_DISABLED", Code::kFailedPrecondition},
    ReasonEntry{Reason::kAdapterPinned, "ADAPTER_PINNED", Code::kFailedPrecondition},
    ReasonEntry{Reason::kBaseRequired, "BASE_REQUIRED", Code::kFailedPrecondition},
    ReasonEntry{Reason::kAlreadyMerged, "ALREADY_MERGED", Code::kFailedPrecondition},
    ReasonEntry{Reason::kNotMerged, "NOT_MERGED", Code::kFailedPrecondition},
    ReasonEntry{Reason::kMergedRevision, "MERGED_REVISION", Code::kFailedPrecondition},
    ReasonEntry{Reason::kNoDataDir, "NO_DATA_DIR", Code::kFailedPrecondition},
    ReasonEntry{Reason::kDigestMismatch, "DIGEST_MISMATCH", Code::kFailedPrecondition},
    ReasonEntry{Reason::kEtagMismatch, "ETAG_MISMATCH", Code::kAborted},
    ReasonEntry{Reason::kRevisionMismatch, "REVISION_MISMATCH", Code::kAborted},
    ReasonEntry{Reason::kSourceChanged, "SOURCE_CHANGED", Code::kAborted},
    ReasonEntry{Reason::kMemoryBudgetExceeded, "MEMORY_BUDGET_EXCEEDED", Code::kResourceExhausted},
    ReasonEntry{Reason::kQuotaExceeded, "QUOTA_EXCEEDED", Code::kResourceExhausted},
    ReasonEntry{Reason::kStorageFull, "STORAGE_FULL", Code::kResourceExhausted},
    ReasonEntry{Reason::kMessageTooLarge, "MESSAGE_TOO_LARGE", Code::kResourceExhausted},
    ReasonEntry{Reason::kSequenceExpired, "SEQUENCE_EXPIRED", Code::kOutOfRange},
    ReasonEntry{Reason::kOverloaded, "OVERLOADED", Code::kUnavailable},
    ReasonEntry{Reason::kDraining, "DRAINING", Code::kUnavailable},
    ReasonEntry{Reason::kSourceUnavailable, "SOURCE_UNAVAILABLE", Code::kUnavailable},
    ReasonEntry{Reason::kStoreCorrupt, "STORE_CORRUPT", Code::kDataLoss},
    ReasonEntry{Reason::kUnauthenticated, "UNAUTHENTICATED", Code::kUnauthenticated},
    ReasonEntry{Reason::kPermissionDenied, "PERMISSION_DENIED", Code::kPermissionDenied},
    ReasonEntry{Reason::kNotImplemented, "NOT_IMPLEMENTED", Code::kUnimplemented},
    ReasonEntry{Reason::kCancelled, "CANCELLED", Code::kCancelled},
    ReasonEntry{Reason::kDeadlineExceeded, "DEADLINE_EXCEEDED", Code::kDeadlineExceeded},
    ReasonEntry{Reason::kInternal, "INTERNAL", Code::kInternal},
};

constexpr bool TableFollowsEnum() {
  for (size_t i = 0; i < kReasons.size(); ++i) {
    if (static_cast<size_t>(kReasons[i].reason) != i) return false;
  }
  return true;
}
static_assert(TableFollowsEnum());

const ReasonEntry& EntryOf(Reason reason) { return kReasons[static_cast<size_t>(reason)]; }

// The payload is NUL-separated: reason, then key and value in turn. NUL never occurs in a key, and
// is replaced in values, which may quote hostile files.
std::string Encode(const ErrorDetails& details) {
  std::string out(ReasonName(details.reason));
  for (const auto& [key, value] : details.metadata) {
    out.append(1, '\0').append(key).append(1, '\0');
    std::string clean = value;
    std::replace(clean.begin(), clean.end(), '\0', '?');
    out.append(clean);
  }
  return out;
}

std::optional<ErrorDetails> Decode(std::string_view payload) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = payload.find('\0', begin)) != std::string_view::npos; begin = end + 1) {
    parts.emplace_back(payload.substr(begin, end - begin));
  }
  parts.emplace_back(payload.substr(begin));
  const auto* entry = std::find_if(kReasons.begin(), kReasons.end(),
                                   [&](const ReasonEntry& e) { return e.name == parts[0]; });
  if (entry == kReasons.end()) return std::nullopt;
  ErrorDetails details{entry->reason, {}};
  for (size_t i = 1; i + 1 < parts.size(); i += 2) {
    details.metadata.emplace_back(parts[i], parts[i + 1]);
  }
  return details;
}

absl::Status WithDetails(absl::StatusCode code, absl::string_view message,
                         const ErrorDetails& details) {
  absl::Status status(code, message);
  status.SetPayload(kPayloadUrl, absl::Cord(Encode(details)));
  return status;
}

}  // namespace

std::string_view ReasonName(Reason reason) { return EntryOf(reason).name; }

absl::StatusCode ReasonCode(Reason reason) { return EntryOf(reason).code; }

Error::operator absl::Status() const {
  return WithDetails(ReasonCode(reason_), message_, {reason_, metadata_});
}

ErrorDetails GetErrorDetails(const absl::Status& status) {
  if (auto payload = status.GetPayload(kPayloadUrl)) {
    if (auto details = Decode(static_cast<std::string>(*payload))) return *std::move(details);
  }
  switch (status.code()) {
    case absl::StatusCode::kCancelled:
      return {Reason::kCancelled, {}};
    case absl::StatusCode::kDeadlineExceeded:
      return {Reason::kDeadlineExceeded, {}};
    default:
      return {Reason::kInternal, {}};
  }
}

absl::Status Annotate(const absl::Status& status, std::string_view key, std::string_view value) {
  if (status.ok()) return status;
  ErrorDetails details = GetErrorDetails(status);
  for (const auto& [present, unused] : details.metadata) {
    if (present == key) return status;
  }
  details.metadata.emplace_back(key, value);
  return WithDetails(status.code(), status.message(), details);
}

}  // namespace adapterd
