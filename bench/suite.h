// The suites of this binary and what they are run with.
#ifndef ADAPTERD_BENCH_SUITE_H_
#define ADAPTERD_BENCH_SUITE_H_

#include <span>

#include "absl/status/status.h"
#include "bench/measure.h"
#include "bench/report.h"

namespace adapterd::bench {

struct SuiteContext {
  bool quick = false;
  int threads = 1;  // cores that this process may run on
  Report& report;
};

// Checks that what it is about to time is right, times it, and reports rows. An error means that
// there is nothing to report, not that something is slow.
struct Suite {
  const char* name;
  const char* summary;
  absl::Status (*run)(SuiteContext& context);
};

// In the order they run.
std::span<const Suite> AllSuites();

absl::Status RunKernelSuite(SuiteContext& context);
absl::Status RunSegmentsSuite(SuiteContext& context);
absl::Status RunLoadSuite(SuiteContext& context);
absl::Status RunMergeSuite(SuiteContext& context);
absl::Status RunForwardSuite(SuiteContext& context);
absl::Status RunComposeSuite(SuiteContext& context);
absl::Status RunRpcSuite(SuiteContext& context);
absl::Status RunOverloadSuite(SuiteContext& context);
absl::Status RunFleetSuite(SuiteContext& context);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_SUITE_H_
