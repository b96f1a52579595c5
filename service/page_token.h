// Where a listing goes on.
#ifndef ADAPTERD_SERVICE_PAGE_TOKEN_H_
#define ADAPTERD_SERVICE_PAGE_TOKEN_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace adapterd {

// Paging by name stays right while adapters come and go. Every page of a listing tells where the
// first one began, so that a watch from there misses nothing that happened between the pages.
struct PagePosition {
  std::string last_name;  // of the page before
  int64_t sequence = 0;   // of the first page

  bool operator==(const PagePosition&) const = default;
};

// Opaque to clients; bound to the filters of the listing.
std::string MakePageToken(const PagePosition& position, const std::string& filters);

// INVALID_FIELD for a token that MakePageToken did not make for these filters.
absl::StatusOr<PagePosition> ReadPageToken(const std::string& token, const std::string& filters);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PAGE_TOKEN_H_
