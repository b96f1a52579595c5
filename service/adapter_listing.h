// ListAdapters over a snapshot of the registry.
#ifndef ADAPTERD_SERVICE_ADAPTER_LISTING_H_
#define ADAPTERD_SERVICE_ADAPTER_LISTING_H_

#include <vector>

#include "absl/status/status.h"
#include "adapterd/v1/adapter_service.pb.h"
#include "core/registry/registry_types.h"

namespace adapterd {

inline constexpr int64_t kDefaultPageSize = 100;
inline constexpr int64_t kMaxPageSize = 1000;
inline constexpr size_t kMaxPageBytes = 2'000'000;  // well below the 4 MB that clients accept

// Fills one page from `adapters`, which is all of them, by name. INVALID_FIELD for a negative page
// size, an unknown state or a foreign page token. Pure.
absl::Status FillListing(const std::vector<AdapterSnapshot>& adapters, int64_t memory_budget_bytes,
                         const v1::ListAdaptersRequest& request,
                         v1::ListAdaptersResponse& response);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADAPTER_LISTING_H_
