#include "core/base/thread_pool.h"

#include <pthread.h>

#include <utility>

namespace adapterd {

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
}

int ThreadPool::queue_length() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(jobs_.size());
}

void ThreadPool::Run() {
  for (;;) {
    Job job;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &ThreadPool::HasWorkOrStops));
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    std::move(job)();
  }
}

}  // namespace adapterd
