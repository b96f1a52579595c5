// What the admin server tells about its inside when it is asked to by --debug-pages.
#ifndef ADAPTERD_SERVICE_DEBUG_PAGES_H_
#define ADAPTERD_SERVICE_DEBUG_PAGES_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "core/base/thread_pool.h"
#include "service/open_calls.h"

namespace adapterd {

inline constexpr size_t kDebugCalls = 100;  // that are listed one by one

// JSON: how many calls each method has open and how old the oldest is, and the oldest calls of all.
// Methods, ages and request ids alone: neither names nor addresses nor contents.
std::string CallsJson(const OpenCalls& calls, absl::Time now);

using NamedPools = std::vector<std::pair<std::string, const ThreadPool*>>;
// JSON: threads and queued jobs of each.
std::string PoolsJson(const NamedPools& pools);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_DEBUG_PAGES_H_
