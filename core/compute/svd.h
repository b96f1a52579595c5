// Truncated singular value decompositions: the best approximation of a delta in a lower rank.
#ifndef ADAPTERD_CORE_COMPUTE_SVD_H_
#define ADAPTERD_CORE_COMPUTE_SVD_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/compute/merge.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// D = U S V^T, cut off behind its largest singular values. Signs are fixed: of each column of B the
// element of the largest magnitude is positive. Both factors are F32.
struct TruncatedSvd {
  Tensor lora_a;               // V^T [rank, cols]: orthonormal rows
  Tensor lora_b;               // U S [rows, rank]
  std::vector<double> values;  // [rank], descending; zeros where D has no more
};

// Of D [rows, cols] = the sum of all terms' factor * B A, which is never formed: QR of the factors
// side by side, then the SVD of a matrix that is as large as the sum of ranks (R). QR in F32, the
// small SVD in F64; values are right within a few units of 1e-6 of the largest. NON_FINITE_RESULT
// when a factor times its term's factor does not fit into F32. REQUIRES: at least one term, shapes
// agree, rank >= 1; it is cut to min(R, rows, cols).
//
// Pure; any thread. Cost: 4 (rows + cols) R^2 FLOPs and 20 R^3 more; holds 3 (rows + cols) R
// floats.
absl::StatusOr<TruncatedSvd> LowRankSvd(std::span<const MergeTerm> terms, int64_t rank);

// Smaller sides up to this are decomposed directly.
inline constexpr int64_t kDirectSvdSide = 512;

// Of any D, F32. Its larger relatives are found by restarted block Lanczos: D and its transpose are
// applied to blocks of vectors until |D^T u - s v| is at most kSvdTolerance of the largest value
// for all triplets that are kept. What is kept is then as good an approximation as the exact one to
// within the square of that. Vectors to start with come from a fixed random stream, so equal D give
// equal results, whatever the number of threads. NON_FINITE_RESULT when D is not finite; CANCELLED;
// INTERNAL when it does not converge.
//
// Cost: some hundred passes over D, on idle threads of `pool` too; holds about
// 20 (rows + cols) (rank + 8) floats.
absl::StatusOr<TruncatedSvd> DenseSvd(ThreadPool& pool, const MatrixView& matrix, int64_t rank,
                                      const Cancellation& cancellation);

inline constexpr double kSvdTolerance = 3e-6;

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_SVD_H_
