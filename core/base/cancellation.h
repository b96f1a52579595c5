// A flag that says "nobody waits for this any more".
#ifndef ADAPTERD_CORE_BASE_CANCELLATION_H_
#define ADAPTERD_CORE_BASE_CANCELLATION_H_

#include <atomic>
#include <memory>

#include "absl/status/status.h"

namespace adapterd {

// Copies share one flag. Any thread may cancel or ask; long work asks between blocks (about a
// millisecond apart) and stops with the status that Check returns.
class Cancellation {
 public:
  Cancellation() : cancelled_(std::make_shared<std::atomic<bool>>(false)) {}

  void Cancel() { cancelled_->store(true, std::memory_order_relaxed); }
  bool IsCancelled() const { return cancelled_->load(std::memory_order_relaxed); }
  absl::Status Check() const {
    return IsCancelled() ? absl::CancelledError("the caller went away") : absl::OkStatus();
  }

 private:
  std::shared_ptr<std::atomic<bool>> cancelled_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_CANCELLATION_H_
