// Where a listing goes on.
#ifndef ADAPTERD_SERVICE_PAGE_TOKEN_H_
#define ADAPTERD_SERVICE_PAGE_TOKEN_H_

#include <string>

#include "absl/status/statusor.h"

namespace adapterd {

// Opaque to clients: the last name of a page, bound to the filters of the listing. Paging by name
// stays right while adapters come and go.
std::string MakePageToken(const std::string& last_name, const std::string& filters);

// The last name. INVALID_FIELD for a token that MakePageToken did not make for these filters.
absl::StatusOr<std::string> ReadPageToken(const std::string& token, const std::string& filters);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PAGE_TOKEN_H_
