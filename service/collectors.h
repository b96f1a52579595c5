// Metrics that are read off when somebody scrapes, instead of counted as things happen.
#ifndef ADAPTERD_SERVICE_COLLECTORS_H_
#define ADAPTERD_SERVICE_COLLECTORS_H_

#include <prometheus/metric_family.h>

#include <vector>

#include "core/base/thread_pool.h"
#include "core/registry/adapter_registry.h"
#include "core/tensor/buffer_pool.h"

namespace adapterd {

// Series with an adapter's name in a label; the largest keep theirs, the rest are summed as
// "other".
inline constexpr size_t kMaxAdapterSeries = 200;

inline constexpr AdapterState kAdapterStates[] = {AdapterState::kLoading, AdapterState::kReady,
                                                  AdapterState::kEvicted, AdapterState::kFailed};

// "loading": how metrics and the status page write states.
const char* StateLabel(AdapterState state);

// adapterd_adapters, adapterd_adapter_memory_bytes, adapterd_memory_bytes,
// adapterd_memory_budget_bytes, adapterd_apply_requests_total.
std::vector<prometheus::MetricFamily> CollectAdapters(const AdapterRegistry& registry);

// adapterd_queue_length, adapterd_io_queue_length, adapterd_buffer_bytes, adapterd_build_info.
std::vector<prometheus::MetricFamily> CollectServer(const ThreadPool& workers,
                                                    const ThreadPool& io_pool,
                                                    const BufferPool& buffers,
                                                    const std::string& isa);

// process_cpu_seconds_total, process_resident_memory_bytes, process_open_fds, ... from /proc/self.
std::vector<prometheus::MetricFamily> CollectProcess();

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_COLLECTORS_H_
