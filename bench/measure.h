// Two calls timed against each other.
#ifndef ADAPTERD_BENCH_MEASURE_H_
#define ADAPTERD_BENCH_MEASURE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace adapterd::bench {

struct MeasureOptions {
  absl::Duration time;   // all sides together, warm-up aside
  int min_rounds = 5;    // even if they take longer
  bool cpu_time = true;  // false when other processes do the work
};

// What the samples of one side say.
struct Timing {
  // A time that was not measured here: a limit, or somebody's figure. It has no repetitions.
  static Timing Of(double us);
  // What one takes after the other. No percentiles: those do not add up.
  Timing operator+(const Timing& other) const;
  // Of one of `count` things that each call did.
  Timing operator/(double count) const;

  double median_us = 0;
  std::optional<double> cpu_us;  // of all threads of this process: other load barely changes it
  std::optional<double> p99_us;  // needs a hundred samples to mean anything
  double spread = 0;             // interquartile range over the median
  int64_t repetitions = 0;
};

struct Comparison {
  Timing ours;
  Timing reference;

  double ratio() const { return ours.median_us / reference.median_us; }
  std::optional<double> cpu_ratio() const;
  // Of the side that is less sure.
  double spread() const;
  int64_t repetitions() const;  // of the side that had fewer, if both were measured
};

// What a fraction of the values is not above. REQUIRES: sorted, ascending; not empty.
double Percentile(const std::vector<double>& sorted, double fraction);

// One of the things that are timed against each other.
struct Contestant {
  absl::FunctionRef<absl::Status()> call;
  // Runs after each call and counts neither in time nor in CPU time: what the call left behind has
  // to go, but is not part of what it does.
  std::optional<absl::FunctionRef<absl::Status()>> clean_up = std::nullopt;
};

// Runs all of them in turns until the time is up, so that whatever else the machine does meets all
// alike; one timing for each, in order. A turn is a burst of calls, about two milliseconds of them,
// each timed on its own: a single short call would run in the caches that the others left behind.
// All are warmed up first. Ends with the first error of any.
absl::StatusOr<std::vector<Timing>> MeasureInTurns(const MeasureOptions& options,
                                                   std::span<const Contestant> contestants);

// The same for two.
absl::StatusOr<Comparison> MeasureAlternating(const MeasureOptions& options,
                                              absl::FunctionRef<absl::Status()> ours,
                                              absl::FunctionRef<absl::Status()> reference);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_MEASURE_H_
