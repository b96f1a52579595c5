// Removes what was uploaded once no adapter needs it.
#ifndef ADAPTERD_SERVICE_CONTENT_COLLECTOR_H_
#define ADAPTERD_SERVICE_CONTENT_COLLECTOR_H_

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "core/base/thread_pool.h"
#include "core/catalog/content_store.h"
#include "core/registry/adapter_registry.h"
#include "service/logger.h"

namespace adapterd {

// One collection runs at a time, on the I/O pool; requests that wait share the next one.
// Threads: Request from any. The destructor waits until none is left.
class ContentCollector {
 public:
  // All of it outlives the collector. `store` may be null: then there is nothing to collect. In a
  // temporary one only what is being loaded is kept.
  ContentCollector(ContentStore* store, const AdapterRegistry& registry, ThreadPool& io_pool,
                   Logger& logger)
      : store_(store), registry_(registry), io_pool_(io_pool), logger_(logger) {}
  ~ContentCollector() ABSL_LOCKS_EXCLUDED(mutex_);
  ContentCollector(const ContentCollector&) = delete;
  ContentCollector& operator=(const ContentCollector&) = delete;

  // `then` runs after a collection that begins after this call: on an I/O thread, or at once
  // without a store. What cannot be removed is logged and tried again by the next.
  void Request(absl::AnyInvocable<void()> then) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  void Collect();

  ContentStore* const store_;
  const AdapterRegistry& registry_;
  ThreadPool& io_pool_;
  Logger& logger_;

  absl::Mutex mutex_;
  std::vector<absl::AnyInvocable<void()>> waiting_ ABSL_GUARDED_BY(mutex_);
  bool running_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_CONTENT_COLLECTOR_H_
