// How much may wait for the workers: as long as an answer still comes in time.
#ifndef ADAPTERD_SERVICE_QUEUE_LIMIT_H_
#define ADAPTERD_SERVICE_QUEUE_LIMIT_H_

#include <atomic>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/base/thread_pool.h"

namespace adapterd {

// Who asks for more than the workers can do is told so at once: with a longer queue everybody would
// wait as long as it is, and nobody would be served more.
inline constexpr absl::Duration kMaxQueueWait = absl::Milliseconds(100);
// Of each worker: so few are let in however long they take, because they may be all the clients
// that there are, each of which waits for its answer.
inline constexpr int kPatientJobs = 128;

// Any thread.
class QueueLimit {
 public:
  // `workers` outlives this.
  explicit QueueLimit(const ThreadPool& workers) : workers_(workers) {}

  // One of the workers' jobs took so long.
  void Ran(absl::Duration time);
  // OVERLOADED when a job that is submitted now would probably wait for longer than kMaxQueueWait.
  absl::Status Check() const;

 private:
  const ThreadPool& workers_;
  std::atomic<double> job_seconds_ = 0;  // moving average; an update that is lost does no harm
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_QUEUE_LIMIT_H_
