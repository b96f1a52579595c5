// ListAdapters: what a page asks of the registry, and the reply that it makes.
#ifndef ADAPTERD_SERVICE_ADAPTER_LISTING_H_
#define ADAPTERD_SERVICE_ADAPTER_LISTING_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "adapterd/v1/adapter_service.pb.h"
#include "core/registry/adapter_registry.h"

namespace adapterd {

inline constexpr int64_t kDefaultPageSize = 100;
inline constexpr int64_t kMaxPageSize = 1000;
inline constexpr size_t kMaxPageBytes = 2'000'000;  // well below the 4 MB that clients accept

// One page of a listing.
struct ListingPage {
  ListQuery query;
  std::string filters;                    // what the next page's token is bound to
  std::optional<int64_t> first_sequence;  // of the first page; nullopt: this is the first
};

// INVALID_FIELD for a negative page size, an unknown state or a foreign page token.
absl::StatusOr<ListingPage> ReadListing(const v1::ListAdaptersRequest& request);

// Makes the reply of what the registry gave for `page.query`. Adapters that are over the page's
// bytes are left to the next page; a first one is never. Pure.
void FillListing(const ListingPage& page, const ListPage& listed, const RegistryTotals& totals,
                 v1::AdapterView view, v1::ListAdaptersResponse& response);

// All adapters, by name. Costs the lock of List for each thousand of them.
std::vector<AdapterSnapshot> ListEverything(const AdapterRegistry& registry);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADAPTER_LISTING_H_
