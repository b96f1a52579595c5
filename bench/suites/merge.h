// Parts of the merge suite.
#ifndef ADAPTERD_BENCH_SUITES_MERGE_H_
#define ADAPTERD_BENCH_SUITES_MERGE_H_

#include "bench/suite.h"

namespace adapterd::bench {

// Writes some GB to the folder for temporary files, and removes them.
absl::Status RunCheckpointMerges(SuiteContext& context);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_SUITES_MERGE_H_
