// What adapters make of a weight: W + sum of factor * B A, DoRA's rescaling of it, or another
// weight in its place, with a record of what rounding did.
#ifndef ADAPTERD_CORE_COMPUTE_MERGE_H_
#define ADAPTERD_CORE_COMPUTE_MERGE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/compute/add_rounded.h"
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
  // magnitude over norm [out_features], where it is known: the norms are not computed then.
  const float* gains = nullptr;
};

// The merge of one weight that is given in blocks of rows and not kept, so that it need not fit
// into memory. Every element is computed in F32 and rounded once, to the dtype of `merged`.
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
// Threads: one at a time; the work of a call is shared with idle threads of the pool. Results do
// not depend on the number of threads. What the options and terms point to must outlive it.
class WeightMerge {
 public:
  // Of a weight [rows, cols]. REQUIRES: shapes agree with the layout; ids are rows of the weight;
  // dtypes are compute floats. With a magnitude: exactly one term, and a replacement of all rows or
  // of none.
  static absl::StatusOr<WeightMerge> Create(const Kernels& kernels,
                                            std::span<const MergeTerm> terms,
                                            const MergeOptions& options, int64_t rows,
                                            int64_t cols);
  WeightMerge(WeightMerge&&) noexcept;
  WeightMerge& operator=(WeightMerge&&) noexcept;
  ~WeightMerge();

  // Whether AddNorms has to see every row before the first Merge: DoRA's norms of a weight that is
  // kInOut run down its columns.
  bool NeedsNorms() const;
  // Rows [first_row, first_row + weight.rows), each once.
  absl::Status AddNorms(ThreadPool& pool, int64_t first_row, const MatrixView& weight,
                        const Cancellation& cancellation);

  // Writes these rows to `merged`, of the shape of `weight`: its memory, when they have one dtype,
  // or memory that overlaps neither it nor the replacement. NON_FINITE_RESULT when a finite weight
  // becomes infinite or NaN, unless allowed; `merged` is then undefined. That is what a row without
  // a norm becomes: see DoraGains. Cancellation: as ApplyProjection.
  absl::Status Merge(ThreadPool& pool, int64_t first_row, const MatrixView& weight,
                     const MutableMatrixView& merged, const Cancellation& cancellation);

  // Of all rows merged so far.
  const RoundingStats& sums() const;

 private:
  class Impl;
  explicit WeightMerge(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

MergeStats Summarise(const RoundingStats& sums);

// The same for a weight that is in memory.
absl::StatusOr<MergeStats> MergeWeight(const Kernels& kernels, ThreadPool& pool,
                                       const MatrixView& weight, std::span<const MergeTerm> terms,
                                       const MergeOptions& options, const MutableMatrixView& merged,
                                       const Cancellation& cancellation);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_MERGE_H_
