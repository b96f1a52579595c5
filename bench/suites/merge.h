// What the rows of the suite `merge` share.
#ifndef ADAPTERD_BENCH_SUITES_MERGE_H_
#define ADAPTERD_BENCH_SUITES_MERGE_H_

#include "absl/status/status.h"
#include "bench/data.h"
#include "bench/measure.h"
#include "bench/suite.h"
#include "core/base/thread_pool.h"
#include "core/compute/kernels.h"

namespace adapterd::bench {

struct MergeCase {
  const Kernels& kernels;
  ThreadPool& pool;
  const Tensor& weight;
  const Factors& factors;
};

// The row of MergeAdapter.
absl::Status MeasureBaseMerge(SuiteContext& context, const MergeCase& merge_case,
                              const MeasureOptions& options);

// The rows of MergeCheckpoint. Writes some GB to the folder for temporary files, and removes them.
absl::Status RunCheckpointMerges(SuiteContext& context);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_SUITES_MERGE_H_
