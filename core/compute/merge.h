// W' = W + sum over adapters of factor * B A, with a record of what rounding did.
#ifndef ADAPTERD_CORE_COMPUTE_MERGE_H_
#define ADAPTERD_CORE_COMPUTE_MERGE_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/compute/kernels.h"
#include "core/tensor/tensor.h"

namespace adapterd {

enum class WeightLayout {
  kOutIn,  // [out_features, in_features], as nn.Linear
  kInOut,  // [in_features, out_features], as GPT-2's Conv1D
};

struct MergeTerm {
  MatrixView a;       // [rank, in_features]
  MatrixView b;       // [out_features, rank]
  double factor = 1;  // request weight x module scale
};

// Of one merge. Deltas and sums are F32; errors are measured against the F32 sum's exact value.
struct MergeStats {
  double max_abs_delta = 0;
  double max_abs_rounding_error = 0;
  double relative_rounding_error = 0;  // Frobenius norm of what rounding lost over the delta's
  int64_t zeroed_elements = 0;         // non-zero deltas that left the weight's bits unchanged
  int64_t non_finite_elements = 0;     // NaN or infinite elements of the result
};

struct MergeOptions {
  WeightLayout layout = WeightLayout::kOutIn;
  bool allow_non_finite = false;
};

// Writes `merged`, which has the shape and dtype of `weight` and may be the same memory. The deltas
// of all terms are summed in F32, added to the weight in F32 and rounded once. An element whose
// delta is zero keeps its bits (also -0, NaN payloads and denormals).
//
// NON_FINITE_RESULT when a finite weight becomes infinite or NaN, unless allowed; `merged` is then
// undefined. REQUIRES: shapes agree with the layout; dtypes are compute floats.
// Threads and cancellation: as ApplyProjection.
absl::StatusOr<MergeStats> MergeWeight(const Kernels& kernels, ThreadPool& pool,
                                       const MatrixView& weight, std::span<const MergeTerm> terms,
                                       const MergeOptions& options, const MutableMatrixView& merged,
                                       const Cancellation& cancellation);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_MERGE_H_
