// How much work may be in the house at one time.
#ifndef ADAPTERD_SERVICE_ADMISSION_H_
#define ADAPTERD_SERVICE_ADMISSION_H_

#include <prometheus/gauge.h>

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace adapterd {

// Requests that wait or run, whatever their size; beyond it an answer would only come late.
inline constexpr int kMaxAdmittedRequests = 4096;

// Counts the bytes and the number of data-plane requests that were let in. Any thread.
class Admission {
 public:
  // Gives back what was admitted. Movable; must not outlive the Admission.
  class Ticket {
   public:
    Ticket() = default;
    ~Ticket() { Release(); }
    Ticket(Ticket&& other) noexcept;
    Ticket& operator=(Ticket&& other) noexcept;
    // Takes more for the reply, now that its size is known; OVERLOADED when there is no room.
    absl::Status Grow(int64_t bytes);

   private:
    friend class Admission;
    Ticket(Admission* admission, int64_t bytes) : admission_(admission), bytes_(bytes) {}
    void Release();

    Admission* admission_ = nullptr;
    int64_t bytes_ = 0;
  };

  // `gauge` shows the bytes and must outlive this.
  Admission(int64_t max_bytes, prometheus::Gauge& gauge) : max_bytes_(max_bytes), gauge_(gauge) {}

  // OVERLOADED when bytes or requests are over their limits. A request that is larger than the
  // whole limit is let in when nothing else is.
  absl::StatusOr<Ticket> Admit(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status Take(int64_t bytes, int requests) ABSL_LOCKS_EXCLUDED(mutex_);
  void GiveBack(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  const int64_t max_bytes_;
  prometheus::Gauge& gauge_;

  absl::Mutex mutex_;
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int requests_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADMISSION_H_
