// The calls that last until somebody ends them.
#ifndef ADAPTERD_SERVICE_LONG_CALLS_H_
#define ADAPTERD_SERVICE_LONG_CALLS_H_

#include <cstddef>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace adapterd {

// A stream that its client may leave open for days.
class LongCall {
 public:
  virtual ~LongCall() = default;
  // Ends it with `status` as soon as nothing is on its way. The first status counts.
  virtual void End(const absl::Status& status) = 0;
  // Cancels it when something is on its way that its client does not take.
  virtual void Cut() = 0;
};

// Those of one RPC, so that there are not too many and a drain can end them. Any thread; outlives
// its calls.
class LongCalls {
 public:
  // At most `max` at once. `what` is what errors call them: "watches".
  LongCalls(size_t max, std::string what) : max_(max), what_(std::move(what)) {}

  // DRAINING once they were ended, OVERLOADED above the limit.
  absl::Status Add(std::shared_ptr<LongCall> call) ABSL_LOCKS_EXCLUDED(mutex_);
  void Remove(const std::shared_ptr<LongCall>& call) ABSL_LOCKS_EXCLUDED(mutex_);

  // Lets no more in, and ends all with DRAINING: at once, but for those whose client does not take
  // what was sent to it.
  void End() ABSL_LOCKS_EXCLUDED(mutex_);
  // Cuts off the latter.
  void Cut() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  std::set<std::shared_ptr<LongCall>> Copy() const ABSL_LOCKS_EXCLUDED(mutex_);

  const size_t max_;
  const std::string what_;
  mutable absl::Mutex mutex_;
  std::set<std::shared_ptr<LongCall>> calls_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_LONG_CALLS_H_
