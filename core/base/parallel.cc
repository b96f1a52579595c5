#include "core/base/parallel.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace adapterd {
namespace {

// Outlives the call when a helper is still queued: it then finds `next_` past the end and never
// touches `body_`, which lives on the caller's stack.
class Loop {
 public:
  Loop(int64_t count, const Cancellation& cancellation,
       absl::FunctionRef<absl::Status(int64_t)> body)
      : count_(count), cancellation_(cancellation), body_(body) {}

  void Help() ABSL_LOCKS_EXCLUDED(mutex_) {
    for (int64_t index; Take(&index);) Finish(body_(index));
  }

  // After the caller's own Help.
  absl::Status Wait() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &Loop::Idle));
    return status_;
  }

 private:
  bool Take(int64_t* index) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (next_ == count_) return false;
    if (absl::Status cancelled = cancellation_.Check(); !cancelled.ok()) {
      Stop(std::move(cancelled));
      return false;
    }
    *index = next_++;
    ++running_;
    return true;
  }

  void Finish(absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    --running_;
    if (!status.ok()) Stop(std::move(status));
  }

  void Stop(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    next_ = count_;
    if (status_.ok()) status_ = std::move(status);
  }

  bool Idle() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return running_ == 0; }

  const int64_t count_;
  const Cancellation cancellation_;
  const absl::FunctionRef<absl::Status(int64_t)> body_;

  absl::Mutex mutex_;
  int64_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::Status ParallelFor(ThreadPool& pool, int64_t count, const Cancellation& cancellation,
                         absl::FunctionRef<absl::Status(int64_t)> body) {
  const int64_t helpers = std::min<int64_t>(count, pool.threads()) - 1;
  if (helpers <= 0) {
    for (int64_t index = 0; index < count; ++index) {
      if (absl::Status status = cancellation.Check(); !status.ok()) return status;
      if (absl::Status status = body(index); !status.ok()) return status;
    }
    return absl::OkStatus();
  }
  auto loop = std::make_shared<Loop>(count, cancellation, body);
  for (int64_t i = 0; i < helpers; ++i) {
    pool.Submit([loop] { loop->Help(); });
  }
  loop->Help();
  return loop->Wait();
}

}  // namespace adapterd
