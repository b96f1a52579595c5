// What is said of a request's field that is not as it has to be.
#ifndef ADAPTERD_SERVICE_FIELD_ERROR_H_
#define ADAPTERD_SERVICE_FIELD_ERROR_H_

#include <string>

#include "absl/status/status.h"

namespace adapterd {

// INVALID_FIELD: "FIELD: expected EXPECTED, found "FOUND""; quotes the beginning of `found`.
absl::Status FieldError(const std::string& field, const std::string& expected,
                        const std::string& found);

// INVALID_FIELD unless [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}: names of adapters and of aliases.
absl::Status CheckAdapterName(const std::string& name, const std::string& field);

// INVALID_FIELD unless 64 lower-case hex digits.
absl::Status CheckDigest(const std::string& digest, const std::string& field);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_FIELD_ERROR_H_
