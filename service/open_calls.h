// The calls that are being worked on, so that a drain can let no more in and wait for the last.
#ifndef ADAPTERD_SERVICE_OPEN_CALLS_H_
#define ADAPTERD_SERVICE_OPEN_CALLS_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace adapterd {

// Any thread. Costs a moment of a lock.
class OpenCalls {
 public:
  // False once it is closed: the call is to be refused, and must not Leave.
  bool Enter() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (!closed_) ++count_;
    return !closed_;
  }

  void Leave() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    --count_;
  }

  void Close() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }

  // Waits until all that entered have left. False when `deadline` comes first.
  bool AwaitNone(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithDeadline(absl::Condition(
                                        +[](int64_t* count) { return *count == 0; }, &count_),
                                    deadline);
  }

 private:
  absl::Mutex mutex_;
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_OPEN_CALLS_H_
