// Results checked against the oracle before anything is timed: a fast wrong answer is no result.
#ifndef ADAPTERD_BENCH_VERIFY_H_
#define ADAPTERD_BENCH_VERIFY_H_

#include "absl/status/status.h"
#include "bench/data.h"

namespace adapterd::bench {

// The first and the last row of `output` against the oracle, to what the dtype can hold.
absl::Status VerifyProjection(const MatrixView& input, const Factors& factors,
                              const MatrixView& output);

// Some rows of `merged` against the rounded oracle: at most one unit in the last place apart, and
// nearly always none. BF16 only.
absl::Status VerifyMerge(const MatrixView& weight, const Factors& factors,
                         const MatrixView& merged);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_VERIFY_H_
