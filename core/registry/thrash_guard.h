// Tells when the adapters in use need more memory than the budget gives.
#ifndef ADAPTERD_CORE_REGISTRY_THRASH_GUARD_H_
#define ADAPTERD_CORE_REGISTRY_THRASH_GUARD_H_

#include <cstdint>
#include <deque>
#include <utility>

#include "absl/time/time.h"

namespace adapterd {

// The registry thrashes when, within kWindow, more bytes came back from eviction than the budget
// holds: what is read is read again before it was of use. Not thread-safe.
class ThrashGuard {
 public:
  static constexpr absl::Duration kWindow = absl::Seconds(30);

  // `bytes` came back at `now`.
  void Restored(absl::Time now, int64_t bytes) {
    restored_.emplace_back(now, bytes);
    sum_ += bytes;
  }

  // Whether more than `budget_bytes` came back in the window that ends at `now`.
  bool Thrashes(absl::Time now, int64_t budget_bytes) {
    while (!restored_.empty() && restored_.front().first < now - kWindow) {
      sum_ -= restored_.front().second;
      restored_.pop_front();
    }
    return sum_ > budget_bytes;
  }

 private:
  std::deque<std::pair<absl::Time, int64_t>> restored_;
  int64_t sum_ = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_THRASH_GUARD_H_
