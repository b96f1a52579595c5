// The status page for people: one HTML page at `/` of the admin server, and the JSON that its
// script asks for.
#ifndef ADAPTERD_SERVICE_STATUS_PAGE_H_
#define ADAPTERD_SERVICE_STATUS_PAGE_H_

#include <string>

#include "adapterd/v1/adapter_service.pb.h"
#include "core/base/thread_pool.h"
#include "core/registry/adapter_registry.h"
#include "service/metrics.h"
#include "service/status_query.h"

namespace adapterd {

inline constexpr size_t kStatusEvents = 20;  // the newest

// All of it outlives the page.
struct StatusSources {
  AdapterRegistry& registry;
  Metrics& metrics;
  const ThreadPool& workers;
  const v1::GetServerInfoResponse& info;
};

// What the page shows, now. The page's own business, and no API: names may change with every
// release. Any thread. Costs a listing of all adapters, about 20 ms for ten thousand.
std::string StatusJson(const StatusSources& sources, bool ready, const StatusQuery& query);

// The page loads nothing but the JSON, and runs no script and no style but its own: the policy says
// so to the browser, by digest.
const std::string& StatusPageHtml();
const std::string& StatusPagePolicy();  // Content-Security-Policy

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_STATUS_PAGE_H_
