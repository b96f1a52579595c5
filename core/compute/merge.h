// What adapters make of a weight: W + sum of factor * B A, DoRA's rescaling of it, or another
// weight in its place, with a record of what rounding did.
#ifndef ADAPTERD_CORE_COMPUTE_MERGE_H_
#define ADAPTERD_CORE_COMPUTE_MERGE_H_

#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/statusor.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/compute/kernels.h"
#include "core/tensor/tensor.h"

namespace adapterd {

enum class WeightLayout {
  kOutIn,  // [out_features, in_features], as nn.Linear
  kInOut,  // [in_features, out_features], as GPT-2's Conv1D; embeddings: [token ids, dim]
};

struct MergeTerm {
  MatrixView a;       // [rank, in_features]
  MatrixView b;       // [out_features, rank]
  double factor = 1;  // request weight x module scale
};

// Weights that an adapter brings instead of the base model's; terms are added to them.
struct MergeReplacement {
  MatrixView weight;             // [rows, the weight's columns]
  std::span<const int64_t> ids;  // the rows that these replace, distinct; empty: all, in order
};

// Of one merge. The delta of an element is what the merge adds to `weight`, before rounding.
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
  std::optional<MergeReplacement> replacement = std::nullopt;
  const float* magnitude = nullptr;  // DoRA's [out_features]
};

// Writes `merged`, which has the shape of `weight`: every element is computed in F32 and rounded
// once, to the dtype of `merged`.
//
//     W  = weight, or the replacement where there is one
//     W' = W + D, where D = the sum of all terms' factor * B A
//     W' = (magnitude / n) * (W + D) with a magnitude; n are the DoraNorms of W + D
//
// Without a replacement, magnitude or change of dtype an element whose delta is zero keeps its bits
// (also -0, NaN payloads and denormals), and so do the rows that a replacement leaves out when D
// has none. Rounding errors are then measured against the exact value of weight + delta, otherwise
// against the F32 value that was rounded.
//
// NON_FINITE_RESULT when a finite weight becomes infinite or NaN, unless allowed; `merged` is then
// undefined. That is what a row without a norm becomes: see DoraGains.
//
// REQUIRES: shapes agree with the layout; ids are rows of the weight; dtypes are compute floats;
// `merged` is the memory of `weight`, when they have one dtype, or overlaps neither it nor the
// replacement. With a magnitude: exactly one term, and a replacement of all rows or of none.
// Threads and cancellation: as ApplyProjection.
absl::StatusOr<MergeStats> MergeWeight(const Kernels& kernels, ThreadPool& pool,
                                       const MatrixView& weight, std::span<const MergeTerm> terms,
                                       const MergeOptions& options, const MutableMatrixView& merged,
                                       const Cancellation& cancellation);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_MERGE_H_
