// How much of a server one tenant may take.
#ifndef ADAPTERD_CORE_REGISTRY_TENANT_QUOTAS_H_
#define ADAPTERD_CORE_REGISTRY_TENANT_QUOTAS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace adapterd {

// An adapter belongs to the tenant that this label of it names, if any.
inline constexpr char kTenantLabel[] = "tenant";

struct TenantQuota {
  int64_t adapters = 0;
  // Of all revisions, in memory or not, as they count against the memory budget. What several
  // adapters share is counted for each.
  int64_t bytes = 0;
  // Requests that use its adapters; one that uses several tenants' counts for each. 0: no bound.
  int64_t calls_per_second = 0;

  bool operator==(const TenantQuota&) const = default;
};

// By tenant; others have no bounds.
using TenantQuotas = std::map<std::string, TenantQuota, std::less<>>;

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_TENANT_QUOTAS_H_
