#include "bench/measure.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <utility>

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

double CpuMicroseconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) / 1e3;
}

Timing Summarize(std::vector<double> samples_us) {
  std::sort(samples_us.begin(), samples_us.end());
  Timing timing;
  timing.median_us = Percentile(samples_us, 0.5);
  timing.spread = (Percentile(samples_us, 0.75) - Percentile(samples_us, 0.25)) / timing.median_us;
  timing.repetitions = static_cast<int64_t>(samples_us.size());
  if (samples_us.size() >= kMinSamplesForP99) timing.p99_us = Percentile(samples_us, 0.99);
  return timing;
}

class Side {
 public:
  explicit Side(const Contestant& contestant) : contestant_(contestant) {}

  // Also finds out how many calls make a burst.
  absl::Status WarmUp() {
    RETURN_IF_ERROR(Run(kWarmUpCalls));
    const double fastest = *std::min_element(samples_us_.begin(), samples_us_.end());
    burst_ = static_cast<int>(std::clamp(kBurstUs / std::max(fastest, 0.1), 1.0, kMaxBurst));
    samples_us_.clear();
    clean_up_cpu_us_ = 0;
    return absl::OkStatus();
  }

  absl::Status Burst() {
    const double start_us = CpuMicroseconds() - clean_up_cpu_us_;
    RETURN_IF_ERROR(Run(burst_));
    cpu_us_.push_back((CpuMicroseconds() - clean_up_cpu_us_ - start_us) / burst_);
    return absl::OkStatus();
  }

  Timing Summary(bool cpu_time) && {
    Timing timing = Summarize(std::move(samples_us_));
    std::sort(cpu_us_.begin(), cpu_us_.end());
    if (cpu_time) timing.cpu_us = Percentile(cpu_us_, 0.5);
    return timing;
  }

 private:
  absl::Status Run(int calls) {
    for (int i = 0; i < calls; ++i) {
      const Clock::time_point start = Clock::now();
      RETURN_IF_ERROR(contestant_.call());
      samples_us_.push_back(MicrosecondsSince(start));
      RETURN_IF_ERROR(CleanUp());
    }
    return absl::OkStatus();
  }

  absl::Status CleanUp() {
    if (!contestant_.clean_up) return absl::OkStatus();
    const double start_us = CpuMicroseconds();
    RETURN_IF_ERROR((*contestant_.clean_up)());
    clean_up_cpu_us_ += CpuMicroseconds() - start_us;
    return absl::OkStatus();
  }

  const Contestant contestant_;
  int burst_ = 1;
  double clean_up_cpu_us_ = 0;
  std::vector<double> samples_us_;
  std::vector<double> cpu_us_;  // of one call; read once a burst, because reading costs
};

}  // namespace

double Percentile(const std::vector<double>& sorted, double fraction) {
  return sorted[static_cast<size_t>(fraction * static_cast<double>(sorted.size() - 1) + 0.5)];
}

Timing Timing::Of(double us) {
  Timing timing;
  timing.median_us = us;
  return timing;
}

Timing Timing::operator+(const Timing& other) const {
  Timing sum = Of(median_us + other.median_us);
  sum.spread = std::max(spread, other.spread);
  sum.repetitions = std::min(repetitions, other.repetitions);
  return sum;
}

Timing Timing::operator/(double count) const {
  Timing each = *this;
  each.median_us /= count;
  if (each.cpu_us) *each.cpu_us /= count;
  if (each.p99_us) *each.p99_us /= count;
  return each;
}

std::optional<double> Comparison::cpu_ratio() const {
  if (!ours.cpu_us || !reference.cpu_us) return std::nullopt;
  return *ours.cpu_us / *reference.cpu_us;
}

double Comparison::spread() const { return std::max(ours.spread, reference.spread); }

int64_t Comparison::repetitions() const {
  return reference.repetitions == 0 ? ours.repetitions
                                    : std::min(ours.repetitions, reference.repetitions);
}

absl::StatusOr<std::vector<Timing>> MeasureInTurns(const MeasureOptions& options,
                                                   std::span<const Contestant> contestants) {
  std::vector<Side> sides(contestants.begin(), contestants.end());
  for (Side& side : sides) RETURN_IF_ERROR(side.WarmUp());
  const Clock::time_point start = Clock::now();
  const double budget_us = absl::ToDoubleMicroseconds(options.time);
  for (int round = 0; round < options.min_rounds || MicrosecondsSince(start) < budget_us; ++round) {
    for (Side& side : sides) RETURN_IF_ERROR(side.Burst());
  }
  std::vector<Timing> timings;
  timings.reserve(sides.size());
  for (Side& side : sides) timings.push_back(std::move(side).Summary(options.cpu_time));
  return timings;
}

absl::StatusOr<Comparison> MeasureAlternating(const MeasureOptions& options,
                                              absl::FunctionRef<absl::Status()> ours,
                                              absl::FunctionRef<absl::Status()> reference) {
  const Contestant both[] = {{ours}, {reference}};
  ASSIGN_OR_RETURN(const std::vector<Timing> timings, MeasureInTurns(options, both));
  return Comparison{timings[0], timings[1]};
}

}  // namespace adapterd::bench
