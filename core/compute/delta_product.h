// The deltas of a weight, block by block of its rows. For this room only.
#ifndef ADAPTERD_CORE_COMPUTE_DELTA_PRODUCT_H_
#define ADAPTERD_CORE_COMPUTE_DELTA_PRODUCT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "core/compute/merge.h"
#include "core/compute/packed_matrix.h"

namespace adapterd {

// All terms as one product: delta [rows, cols] of the weight is rows [rows, rank] x cols [rank,
// cols], where rank is the sum of the terms' ranks. The side that belongs to the weight's columns
// is packed once; the other, with the factors, is made block by block.
//
// Immutable once made; any thread may use it, and gets results in its own scratch. The factors must
// outlive it.
class DeltaProduct {
 public:
  // Rows of the weight whose delta is made at once, so that the delta and the factors stay in the
  // cache until the weight has been read. A power of two, as all buckets of rows are.
  static constexpr int64_t kBlockRows = 32;

  static absl::StatusOr<DeltaProduct> Create(Kernels::Impl& kernels,
                                             std::span<const MergeTerm> terms, WeightLayout layout,
                                             int64_t columns);

  // The weight's columns are computed in chunks.
  std::span<const PackedMatrix::Chunk> chunks() const { return packed_.chunks(); }

  // The left side of rows [first, first + count), in scratch, with zeros up to a bucket of rows.
  // REQUIRES: count <= kBlockRows.
  const float* Rows(int64_t first, int64_t count) const;

  // The delta [count, chunk.columns] of these rows in the chunk's columns, in scratch.
  absl::StatusOr<float*> Multiply(const float* rows, int64_t count,
                                  const PackedMatrix::Chunk& chunk) const;

 private:
  DeltaProduct(Kernels::Impl& kernels, std::span<const MergeTerm> terms, WeightLayout layout,
               PackedMatrix packed);

  void CopyRowsOfB(const MergeTerm& term, int64_t first, int64_t count, float* rows) const;
  void CopyColumnsOfA(const MergeTerm& term, int64_t first, int64_t count, float* rows) const;

  Kernels::Impl& kernels_;
  std::vector<MergeTerm> terms_;
  WeightLayout layout_;
  PackedMatrix packed_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_DELTA_PRODUCT_H_
