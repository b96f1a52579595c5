// Two calls timed against each other.
#ifndef ADAPTERD_BENCH_MEASURE_H_
#define ADAPTERD_BENCH_MEASURE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace adapterd::bench {

// How long one comparison may take, both sides together. The rounds win over the time.
struct Effort {
  absl::Duration time;
  int min_rounds = 5;
};

// What the samples of one side say.
struct Timing {
  double median_us = 0;
  double best_us = 0;            // what is left when nothing else runs
  std::optional<double> p99_us;  // needs a hundred samples to mean anything
  double spread = 0;             // interquartile range over the median
  int64_t repetitions = 0;
};

struct Comparison {
  Timing ours;
  Timing reference;

  double ratio() const { return ours.median_us / reference.median_us; }
  double best_ratio() const { return ours.best_us / reference.best_us; }
  // Of the side that is less sure.
  double spread() const;
  int64_t repetitions() const;
};

// REQUIRES: samples are not empty.
Timing Summarize(std::vector<double> samples_us);

// Runs both sides in turns until the effort is spent, so that whatever else the machine does meets
// both alike. A turn is a burst of calls, about two milliseconds of them, each timed on its own: a
// single short call would run in the caches that the other side left behind. Both are warmed up
// first. Ends with the first error of either.
absl::StatusOr<Comparison> MeasureAlternating(const Effort& effort,
                                              absl::FunctionRef<absl::Status()> ours,
                                              absl::FunctionRef<absl::Status()> reference);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_MEASURE_H_
