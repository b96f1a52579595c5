// The calls that are being worked on, so that a drain can let no more in and wait for the last.
#ifndef ADAPTERD_SERVICE_OPEN_CALLS_H_
#define ADAPTERD_SERVICE_OPEN_CALLS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace adapterd {

// Any thread. Costs a moment of a lock.
class OpenCalls {
 public:
  // A call's place in the list of them. Stays where it is from Enter to Leave.
  struct Call {
    std::string_view service;  // these two of RpcMetrics
    std::string_view method;
    std::string request_id;
    absl::Time start;
    Call* previous = nullptr;  // these two of OpenCalls, under its lock
    Call* next = nullptr;
  };

  // False once it is closed: the call is to be refused, and must not Leave.
  bool Enter(Call& call) ABSL_LOCKS_EXCLUDED(mutex_);
  void Leave(Call& call) ABSL_LOCKS_EXCLUDED(mutex_);
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

  // Waits until all that entered have left. False when `deadline` comes first.
  bool AwaitNone(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);

  // Copies, the oldest first. For people: every call waits at the lock meanwhile.
  std::vector<Call> List() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable absl::Mutex mutex_;
  Call* first_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Call* last_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_OPEN_CALLS_H_
