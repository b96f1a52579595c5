// Events at a bounded rate.
#ifndef ADAPTERD_CORE_BASE_TOKEN_BUCKET_H_
#define ADAPTERD_CORE_BASE_TOKEN_BUCKET_H_

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace adapterd {

// One event takes one token. Full at first; it fills at `per_second` and holds as many as come in a
// second. Not thread-safe.
class TokenBucket {
 public:
  using Clock = std::chrono::steady_clock;

  explicit TokenBucket(int64_t per_second)
      : per_second_(static_cast<double>(per_second)), tokens_(per_second_) {}

  // Whether an event may happen at `now`. A `now` before an earlier one fills nothing.
  bool HasToken(Clock::time_point now) {
    const Clock::time_point filled_to = std::max(now, filled_at_);
    const std::chrono::duration<double> passed = filled_to - filled_at_;
    tokens_ = std::min(per_second_, tokens_ + passed.count() * per_second_);
    filled_at_ = filled_to;
    return tokens_ >= 1;
  }
  // REQUIRES: HasToken told so.
  void Take() { tokens_ -= 1; }

 private:
  double per_second_;
  double tokens_;
  Clock::time_point filled_at_;  // the clock's beginning: the bucket is full anyhow
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_TOKEN_BUCKET_H_
