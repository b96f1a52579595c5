// Which adapters the status page shows.
#ifndef ADAPTERD_SERVICE_STATUS_QUERY_H_
#define ADAPTERD_SERVICE_STATUS_QUERY_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/registry/registry_types.h"

namespace adapterd {

inline constexpr size_t kStatusRows = 100;  // adapters on one page of the table

struct StatusQuery {
  enum class Order { kName, kMemory, kUses, kLastUse };
  std::string filter;  // what the name, the base model or the source contains
  std::optional<AdapterState> state;
  Order order = Order::kName;  // the others: largest, or latest, first
  size_t page = 0;             // of kStatusRows each; behind the last one: the last one
};

// From a query string: `filter`, `state`, `order`, `page`. INVALID_FIELD.
absl::StatusOr<StatusQuery> ReadStatusQuery(const std::multimap<std::string, std::string>& query);

// What the query leaves of `all`, which are by name, in its order. Points into `all`.
std::vector<const AdapterSnapshot*> Select(const std::vector<AdapterSnapshot>& all,
                                           const StatusQuery& query);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_STATUS_QUERY_H_
