#include "core/base/thread_pool.h"

#include <pthread.h>

#include <utility>

namespace adapterd {
namespace {

// Asks again and again before a thread sleeps: about 20 microseconds, as long as waking it up
// takes.
constexpr int kSpins = 400;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(const std::string& name, int threads,
                       const std::function<void()>& on_start) {
  threads_.reserve(threads);
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this, name, on_start] {
      pthread_setname_np(pthread_self(), name.c_str());
      if (on_start) on_start();
      Run();
    });
  }
}

ThreadPool::~ThreadPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Submit(Job job) {
  absl::MutexLock lock(&mutex_);
  jobs_.push_back(std::move(job));
  has_jobs_.store(true, std::memory_order_relaxed);
}

int ThreadPool::queue_length() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(jobs_.size());
}

void ThreadPool::Share(SharedWork& work, int helpers) {
  absl::MutexLock lock(&mutex_);
  work.wanted_ = helpers;
  List(work);
}

void ThreadPool::List(SharedWork& work) {
  work.next_ = shared_;
  shared_ = &work;
}

void ThreadPool::Withdraw(SharedWork& work) {
  {
    absl::MutexLock lock(&mutex_);
    work.withdrawn_ = true;
    if (work.wanted_ > 0) Unlist(work);
  }
  const auto idle = [&work] { return work.helping_.load(std::memory_order_acquire) == 0; };
  for (int spin = 0; spin < kSpins; ++spin) {
    if (idle()) return;
    Pause();
  }
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&idle));
}

ThreadPool::SharedWork* ThreadPool::Join() {
  SharedWork* work = shared_;
  if (work == nullptr) return nullptr;
  work->helping_.fetch_add(1, std::memory_order_relaxed);
  if (--work->wanted_ == 0) Unlist(*work);
  return work;
}

void ThreadPool::Unlist(SharedWork& work) {
  SharedWork** link = &shared_;
  while (*link != &work) link = &(*link)->next_;
  *link = work.next_;
  work.wanted_ = 0;
}

bool ThreadPool::Help(SharedWork& work) {
  bool left = true;
  bool jobs_wait = false;
  while (left && !jobs_wait) {
    left = work.Help();
    jobs_wait = has_jobs_.load(std::memory_order_relaxed);
  }
  absl::MutexLock lock(&mutex_);  // whoever sleeps in Withdraw looks again when it is released
  const bool leaves_some = left && !work.withdrawn_;
  if (leaves_some && ++work.wanted_ == 1) List(work);
  work.helping_.fetch_sub(1, std::memory_order_release);
  return leaves_some;
}

void ThreadPool::Run() {
  bool job_first = false;
  for (;;) {
    Job job;
    SharedWork* work = nullptr;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &ThreadPool::HasWorkOrStops));
      if (jobs_.empty() || !job_first) work = Join();
      if (work == nullptr) {
        if (jobs_.empty()) return;
        job = std::move(jobs_.front());
        jobs_.pop_front();
        has_jobs_.store(!jobs_.empty(), std::memory_order_relaxed);
      }
    }
    job_first = work != nullptr && Help(*work);
    if (work == nullptr) std::move(job)();
  }
}

}  // namespace adapterd
