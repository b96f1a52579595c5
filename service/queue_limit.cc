#include "service/queue_limit.h"

#include <fmt/format.h>

#include "core/base/error.h"

namespace adapterd {
namespace {

constexpr double kNewest = 1.0 / 64;  // of the newest job in the average

}  // namespace

void QueueLimit::Ran(absl::Duration time) {
  const double before = job_seconds_.load(std::memory_order_relaxed);
  job_seconds_.store(before + kNewest * (absl::ToDoubleSeconds(time) - before),
                     std::memory_order_relaxed);
}

absl::Status QueueLimit::Check() const {
  const int waiting = workers_.queue_length();
  if (waiting < kPatientJobs * workers_.threads()) return absl::OkStatus();
  const double seconds =
      waiting * job_seconds_.load(std::memory_order_relaxed) / workers_.threads();
  if (seconds <= absl::ToDoubleSeconds(kMaxQueueWait)) return absl::OkStatus();
  return Error(Reason::kOverloaded,
               fmt::format("{} requests wait for {} threads, and one more would wait for {:.1f} s; "
                           "try again",
                           waiting, workers_.threads(), seconds));
}

}  // namespace adapterd
