#include "bench/fleet_traffic.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "absl/time/clock.h"
#include "bench/machine.h"
#include "bench/messages.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsOf(Clock::time_point time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

}  // namespace

Zipf::Zipf(size_t ranks, double exponent) {
  double sum = 0;
  for (size_t rank = 1; rank <= ranks; ++rank) {
    sum += std::pow(static_cast<double>(rank), -exponent);
    cumulative_.push_back(sum);
  }
}

size_t Zipf::Next() {
  const double at = static_cast<double>(random_() >> 11) * 0x1p-53 * cumulative_.back();
  return std::upper_bound(cumulative_.begin(), cumulative_.end() - 1, at) - cumulative_.begin();
}

Applier::Applier(const Fleet& fleet) : client_(fleet.server().address()) {
  for (size_t i = 0; i < fleet.size().adapters; ++i) {
    requests_.push_back(MakeApplyRequest(Fleet::NameOf(i), Fleet::InputOf(i)));
  }
}

absl::StatusOr<Traffic> Applier::Run(absl::Duration time, absl::FunctionRef<size_t()> next) {
  Traffic traffic;
  const CoreWait core_wait;
  const double end = absl::ToDoubleSeconds(time) + SecondsOf(Clock::now());
  double last = SecondsOf(Clock::now()) - core_wait.Seconds();
  for (double now = 0; now < end;) {
    grpc::ByteBuffer reply;
    RETURN_IF_ERROR(client_.Apply(requests_[next()], 0, reply));
    now = SecondsOf(Clock::now());
    const double before = std::exchange(last, now - core_wait.Seconds());
    traffic.latencies_us.push_back(1e6 * (last - before));
    traffic.seconds += last - before;
  }
  return traffic;
}

Beside::Beside(absl::Duration period, std::function<absl::Status()> action)
    : action_(std::move(action)), thread_([this, period] { Run(period); }) {}

Beside::~Beside() {
  if (thread_.joinable()) (void)Stop();
}

absl::StatusOr<int64_t> Beside::Stop() {
  stop_.Notify();
  thread_.join();
  RETURN_IF_ERROR(status_);
  return count_;
}

void Beside::Run(absl::Duration period) {
  absl::Time due = absl::Now();
  while (!stop_.WaitForNotificationWithDeadline(due)) {
    status_ = action_();
    if (!status_.ok()) return;
    ++count_;
    due = std::max(due + period, absl::Now());
  }
}

}  // namespace adapterd::bench
