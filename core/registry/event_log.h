// The last changes of the registry, in order, for watchers.
#ifndef ADAPTERD_CORE_REGISTRY_EVENT_LOG_H_
#define ADAPTERD_CORE_REGISTRY_EVENT_LOG_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/registry/registry_types.h"

namespace adapterd {

enum class AdapterEventType {
  kLoaded,
  kReplaced,
  kEvicted,
  kRestored,
  kUpdated,
  kFailed,
  kUnloaded,
};

struct AdapterEvent {
  int64_t sequence = 0;  // grows by one
  AdapterEventType type = AdapterEventType::kLoaded;
  AdapterSnapshot adapter;  // without manifest; right after the change, of kUnloaded right before
  absl::Time time;
};

using EventPtr = std::shared_ptr<const AdapterEvent>;

// Remembers the last kCapacity events. Sequences of two logs, also of two runs of the program, are
// never mistaken for each other: each log begins at a random place. Any thread.
class EventLog {
 public:
  static constexpr size_t kCapacity = 4096;  // about 1 KB each

  EventLog();

  void Append(AdapterEventType type, AdapterSnapshot adapter) ABSL_LOCKS_EXCLUDED(mutex_);

  // Of the last event; where the log began when there was none.
  int64_t last_sequence() const ABSL_LOCKS_EXCLUDED(mutex_);

  // At most `max` events after `sequence`, oldest first. SEQUENCE_EXPIRED when they are not all
  // remembered, or `sequence` is not of this log.
  absl::StatusOr<std::vector<EventPtr>> After(int64_t sequence, size_t max) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  // At most `max` of the newest, oldest first.
  std::vector<EventPtr> Last(size_t max) const ABSL_LOCKS_EXCLUDED(mutex_);

  // `listener` runs after every Append, on the appending thread, which may hold the registry's
  // lock: it may only hand over. Returns what Unsubscribe takes; after that the listener neither
  // runs nor will.
  int64_t Subscribe(std::function<void()> listener) ABSL_LOCKS_EXCLUDED(mutex_);
  void Unsubscribe(int64_t id) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable absl::Mutex mutex_;
  std::deque<EventPtr> events_ ABSL_GUARDED_BY(mutex_);
  int64_t last_ ABSL_GUARDED_BY(mutex_);
  int64_t next_listener_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<int64_t, std::function<void()>> listeners_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_EVENT_LOG_H_
