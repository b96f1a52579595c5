#include "bench/measure.h"

#include <algorithm>
#include <chrono>

#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr double kBurstUs = 2000;
constexpr double kMaxBurst = 100;
constexpr int kWarmUpCalls = 3;
constexpr size_t kMinSamplesForP99 = 100;

using Clock = std::chrono::steady_clock;

double MicrosecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

double Percentile(const std::vector<double>& sorted, double fraction) {
  return sorted[static_cast<size_t>(fraction * static_cast<double>(sorted.size() - 1) + 0.5)];
}

class Side {
 public:
  explicit Side(absl::FunctionRef<absl::Status()> call) : call_(call) {}

  // Also finds out how many calls make a burst.
  absl::Status WarmUp() {
    RETURN_IF_ERROR(Run(kWarmUpCalls));
    const double fastest = *std::min_element(samples_us_.begin(), samples_us_.end());
    burst_ = static_cast<int>(std::clamp(kBurstUs / std::max(fastest, 0.1), 1.0, kMaxBurst));
    samples_us_.clear();
    return absl::OkStatus();
  }

  absl::Status Burst() { return Run(burst_); }

  Timing Summary() && { return Summarize(std::move(samples_us_)); }

 private:
  absl::Status Run(int calls) {
    for (int i = 0; i < calls; ++i) {
      const Clock::time_point start = Clock::now();
      RETURN_IF_ERROR(call_());
      samples_us_.push_back(MicrosecondsSince(start));
    }
    return absl::OkStatus();
  }

  absl::FunctionRef<absl::Status()> call_;
  int burst_ = 1;
  std::vector<double> samples_us_;
};

}  // namespace

double Comparison::spread() const { return std::max(ours.spread, reference.spread); }

int64_t Comparison::repetitions() const {
  return std::min(ours.repetitions, reference.repetitions);
}

Timing Summarize(std::vector<double> samples_us) {
  std::sort(samples_us.begin(), samples_us.end());
  Timing timing;
  timing.median_us = Percentile(samples_us, 0.5);
  timing.best_us = samples_us.front();
  timing.spread = (Percentile(samples_us, 0.75) - Percentile(samples_us, 0.25)) / timing.median_us;
  timing.repetitions = static_cast<int64_t>(samples_us.size());
  if (samples_us.size() >= kMinSamplesForP99) timing.p99_us = Percentile(samples_us, 0.99);
  return timing;
}

absl::StatusOr<Comparison> MeasureAlternating(const Effort& effort,
                                              absl::FunctionRef<absl::Status()> ours,
                                              absl::FunctionRef<absl::Status()> reference) {
  Side us(ours);
  Side them(reference);
  RETURN_IF_ERROR(us.WarmUp());
  RETURN_IF_ERROR(them.WarmUp());
  const Clock::time_point start = Clock::now();
  const double budget_us = absl::ToDoubleMicroseconds(effort.time);
  for (int round = 0; round < effort.min_rounds || MicrosecondsSince(start) < budget_us; ++round) {
    RETURN_IF_ERROR(us.Burst());
    RETURN_IF_ERROR(them.Burst());
  }
  return Comparison{std::move(us).Summary(), std::move(them).Summary()};
}

}  // namespace adapterd::bench
