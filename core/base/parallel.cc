#include "core/base/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace adapterd {
namespace {

class Loop final : public ThreadPool::SharedWork {
 public:
  Loop(int64_t count, const Cancellation& cancellation,
       absl::FunctionRef<absl::Status(int64_t)> body)
      : count_(count), cancellation_(cancellation), body_(body) {}

  bool Help() override {
    const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index >= count_) return false;
    absl::Status status = cancellation_.Check();
    try {
      if (status.ok()) status = body_(index);
    } catch (...) {
      // Out of here it would end the process, or leave a caller whose loop others still work on.
      Stop(absl::OkStatus(), std::current_exception());
      return false;
    }
    if (status.ok()) return true;
    Stop(std::move(status), nullptr);
    return false;
  }

  // Once nobody helps any more.
  absl::Status TakeStatus() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (exception_ != nullptr) std::rethrow_exception(exception_);
    return std::move(status_);
  }

 private:
  void Stop(absl::Status status, std::exception_ptr exception) ABSL_LOCKS_EXCLUDED(mutex_) {
    next_.store(count_, std::memory_order_relaxed);
    absl::MutexLock lock(&mutex_);
    if (!status_.ok() || exception_ != nullptr) return;
    status_ = std::move(status);
    exception_ = std::move(exception);
  }

  const int64_t count_;
  const Cancellation& cancellation_;
  const absl::FunctionRef<absl::Status(int64_t)> body_;
  std::atomic<int64_t> next_ = 0;

  absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::exception_ptr exception_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::Status ParallelFor(ThreadPool& pool, int64_t count, const Cancellation& cancellation,
                         absl::FunctionRef<absl::Status(int64_t)> body) {
  const int64_t helpers = std::min<int64_t>(count, pool.threads()) - 1;
  if (helpers <= 0) return RunInTurn(count, cancellation, body);
  Loop loop(count, cancellation, body);
  pool.Share(loop, static_cast<int>(helpers));
  while (loop.Help()) {
  }
  pool.Withdraw(loop);
  return loop.TakeStatus();
}

absl::Status RunInTurn(int64_t count, const Cancellation& cancellation,
                       absl::FunctionRef<absl::Status(int64_t)> body) {
  for (int64_t index = 0; index < count; ++index) {
    if (absl::Status status = cancellation.Check(); !status.ok()) return status;
    if (absl::Status status = body(index); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace adapterd
