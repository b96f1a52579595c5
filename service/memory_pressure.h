// What goes when the memory that the process may use is nearly used up.
#ifndef ADAPTERD_SERVICE_MEMORY_PRESSURE_H_
#define ADAPTERD_SERVICE_MEMORY_PRESSURE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "service/host_limits.h"

namespace adapterd {

// Of the cgroup's limit. Beyond it the kernel soon kills the process, whatever the budget says.
inline constexpr double kMemoryPressure = 0.9;
inline constexpr absl::Duration kMemoryPressurePeriod = absl::Milliseconds(500);

// Looks at the use of memory again and again, on a thread of its own ("memory"). Above
// kMemoryPressure caches go; if that is not enough, adapters that nobody uses.
class MemoryPressure {
 public:
  struct Relief {
    std::function<void()> drop_caches;
    std::function<void(int64_t bytes)> evict;  // so many more than caches gave
    std::function<void(const MemoryUse&)> began;
  };

  MemoryPressure(std::function<std::optional<MemoryUse>()> read, Relief relief,
                 absl::Duration period = kMemoryPressurePeriod);
  ~MemoryPressure();
  MemoryPressure(const MemoryPressure&) = delete;
  MemoryPressure& operator=(const MemoryPressure&) = delete;

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  void Check();

  const std::function<std::optional<MemoryUse>()> read_;
  const Relief relief_;
  const absl::Duration period_;
  bool pressed_ = false;  // of the thread

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MEMORY_PRESSURE_H_
