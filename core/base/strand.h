// Jobs that run one after the other, on the threads of a pool.
#ifndef ADAPTERD_CORE_BASE_STRAND_H_
#define ADAPTERD_CORE_BASE_STRAND_H_

#include <deque>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "core/base/thread_pool.h"

namespace adapterd {

// In the order they were given, without a thread that waits. Any thread may submit. Shared by its
// owner and by what is queued; the pool must outlive the last job.
class Strand : public std::enable_shared_from_this<Strand> {
 public:
  explicit Strand(ThreadPool& pool) : pool_(pool) {}

  void Submit(ThreadPool::Job job) ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      jobs_.push_back(std::move(job));
      if (std::exchange(running_, true)) return;
    }
    pool_.Submit([self = shared_from_this()] { self->RunOne(); });
  }

 private:
  void RunOne() ABSL_LOCKS_EXCLUDED(mutex_) {
    ThreadPool::Job job;
    {
      absl::MutexLock lock(&mutex_);
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
    job = nullptr;
    {
      absl::MutexLock lock(&mutex_);
      running_ = !jobs_.empty();
      if (!running_) return;
    }
    pool_.Submit([self = shared_from_this()] { self->RunOne(); });
  }

  ThreadPool& pool_;
  absl::Mutex mutex_;
  std::deque<ThreadPool::Job> jobs_ ABSL_GUARDED_BY(mutex_);
  bool running_ ABSL_GUARDED_BY(mutex_) = false;  // a job runs or is about to
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_STRAND_H_
