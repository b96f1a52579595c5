// A fixed set of threads that run jobs in the order they were given.
#ifndef ADAPTERD_CORE_BASE_THREAD_POOL_H_
#define ADAPTERD_CORE_BASE_THREAD_POOL_H_

#include <atomic>
#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"

namespace adapterd {

// Threads: Submit and queue_length may be called from any thread, also from a job. The destructor
// runs what is still queued, then joins; nobody may call Submit once it has begun, except jobs.
// Jobs must not throw.
class ThreadPool {
 public:
  using Job = absl::AnyInvocable<void()>;

  // `name` (at most 15 characters) is what the threads are called in /proc and debuggers;
  // `on_start` runs once on each thread before its first job.
  ThreadPool(const std::string& name, int threads, const std::function<void()>& on_start = nullptr);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  void Submit(Job job) ABSL_LOCKS_EXCLUDED(mutex_);

  // Work that idle threads may share with the caller who owns it. Sharing allocates nothing.
  class SharedWork {
   public:
    // Does one piece of what is left to do; false when nothing is. On several threads at once.
    virtual bool Help() = 0;

   protected:
    ~SharedWork() = default;

   private:
    friend class ThreadPool;
    int wanted_ = 0;                // threads that may still join; guarded by the pool's mutex
    bool withdrawn_ = false;        // guarded by the pool's mutex
    std::atomic<int> helping_ = 0;  // threads that have joined and not left
    SharedWork* next_ = nullptr;    // guarded by the pool's mutex
  };

  // Lets up to `helpers` threads at once call work.Help() until nothing is left. They join before
  // they look at queued jobs, because what runs already comes first; but between two pieces a
  // thread that finds jobs does one of them, so that a huge loop does not keep small work waiting.
  void Share(SharedWork& work, int helpers) ABSL_LOCKS_EXCLUDED(mutex_);
  // No further thread joins; returns when those that have are done. Every Share needs one.
  void Withdraw(SharedWork& work) ABSL_LOCKS_EXCLUDED(mutex_);

  int threads() const { return static_cast<int>(threads_.size()); }
  int queue_length() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasWorkOrStops() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !jobs_.empty() || shared_ != nullptr;
  }
  SharedWork* Join() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // True when the thread leaves work behind because jobs wait.
  bool Help(SharedWork& work) ABSL_LOCKS_EXCLUDED(mutex_);
  void List(SharedWork& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Unlist(SharedWork& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> has_jobs_ = false;  // whether jobs_ holds any, to be looked at without the lock
  SharedWork* shared_ ABSL_GUARDED_BY(mutex_) = nullptr;  // a list of those that want threads
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // constant after construction
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_THREAD_POOL_H_
