#include "core/compute/merge.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/compute/add_rounded.h"
#include "core/compute/packed_matrix.h"
#include "core/base/parallel.h"
#include "core/compute/scratch.h"
#include "core/tensor/convert.h"
#include "fmt/format.h"

namespace adapterd {
namespace {

// Rows of the weight whose delta is made at once, so that the delta and the factors stay in the
// cache until the weight has been read. A power of two, as all buckets of rows are.
constexpr int64_t kBlockRows = 32;

// All terms as one product: delta [rows, cols] of the weight is rows [rows, rank] x cols [rank,
// cols], where rank is the sum of the terms' ranks. The side that belongs to the weight's columns
// is packed once; the other, with the factors, is made block by block.
class DeltaProduct {
 public:
  static absl::StatusOr<DeltaProduct> Create(Kernels::Impl& kernels,
                                             std::span<const MergeTerm> terms, WeightLayout layout,
                                             int64_t columns) {
    int64_t rank = 0;
    for (const MergeTerm& term : terms) rank += term.a.rows;
    ASSIGN_OR_RETURN(
        PackedMatrix packed,
        PackedMatrix::Create(kernels, MatrixPlan::Wide(kernels, ComputeType::kF32, rank, columns)));
    int64_t first = 0;
    for (const MergeTerm& term : terms) {
      if (layout == WeightLayout::kOutIn) {
        packed.Fill(term.a, first);
      } else {
        packed.FillTransposed(term.b, first);
      }
      first += term.a.rows;
    }
    return DeltaProduct(kernels, terms, layout, std::move(packed));
  }

  std::span<const PackedMatrix::Chunk> chunks() const { return packed_.chunks(); }

  // The left side of rows [first, first + count), in scratch, with zeros up to a bucket of rows.
  const float* Rows(int64_t first, int64_t count) const {
    const int64_t rank = packed_.plan().k;
    const int64_t bucket = Bucket(count);
    auto* rows = Scratch::OfThisThread().Get<float>(Scratch::kLowRank, bucket * rank);
    std::fill(rows + count * rank, rows + bucket * rank, 0.0f);
    int64_t column = 0;
    for (const MergeTerm& term : terms_) {
      if (layout_ == WeightLayout::kOutIn) {
        CopyRows(term, first, count, rows + column);
      } else {
        CopyColumns(term, first, count, rows + column);
      }
      column += term.a.rows;
    }
    return rows;
  }

  // The delta of `count` rows in the chunk's columns, in scratch.
  absl::StatusOr<const float*> Multiply(const float* rows, int64_t count,
                                        const PackedMatrix::Chunk& chunk) const {
    const int64_t bucket = Bucket(count);
    const MatrixPlan& plan = packed_.plan();
    auto* delta = Scratch::OfThisThread().Get<float>(Scratch::kSums, bucket * chunk.columns);
    if (terms_.empty()) {
      std::fill_n(delta, count * chunk.columns, 0.0f);
      return delta;
    }
    RETURN_IF_ERROR(
        kernels_.Run({plan.type, bucket, plan.k, chunk.columns, plan.panel, /*accumulate=*/false},
                     rows, chunk.weights, delta));
    return delta;
  }

 private:
  DeltaProduct(Kernels::Impl& kernels, std::span<const MergeTerm> terms, WeightLayout layout,
               PackedMatrix packed)
      : kernels_(kernels), terms_(terms), layout_(layout), packed_(std::move(packed)) {}

  static int64_t Bucket(int64_t rows) {
    return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
  }

  // Rows of B.
  void CopyRows(const MergeTerm& term, int64_t first, int64_t count, float* rows) const {
    for (int64_t i = 0; i < count; ++i, rows += packed_.plan().k) {
      const MatrixView row = term.b.Rows(first + i, 1);
      ConvertToF32(row.dtype, row.data, rows, row.cols);
      for (int64_t j = 0; j < row.cols; ++j) rows[j] = Scaled(term, rows[j]);
    }
  }

  // Columns of A.
  void CopyColumns(const MergeTerm& term, int64_t first, int64_t count, float* rows) const {
    float values[kBlockRows];
    for (int64_t j = 0; j < term.a.rows; ++j) {
      const MatrixView row = term.a.Rows(j, 1);
      ConvertToF32(row.dtype, row.data + first * FloatBytes(row.dtype), values, count);
      for (int64_t i = 0; i < count; ++i) rows[i * packed_.plan().k + j] = Scaled(term, values[i]);
    }
  }

  static float Scaled(const MergeTerm& term, float value) {
    return static_cast<float>(term.factor * value);
  }

  Kernels::Impl& kernels_;
  std::span<const MergeTerm> terms_;
  WeightLayout layout_;
  PackedMatrix packed_;
};

// Columns [first, first + columns) of a block of rows.
RoundingStats AddChunk(const MatrixView& weight, const float* delta, int64_t first, int64_t columns,
                       const MutableMatrixView& merged) {
  if (columns == weight.cols) {
    return AddRounded(weight.dtype, weight.data, delta, merged.data, weight.rows * columns);
  }
  RoundingStats stats;
  const int64_t offset = first * FloatBytes(weight.dtype);
  for (int64_t row = 0; row < weight.rows; ++row) {
    const int64_t at = row * weight.row_bytes() + offset;
    stats.Add(AddRounded(weight.dtype, weight.data + at, delta + row * columns, merged.data + at,
                         columns));
  }
  return stats;
}

absl::StatusOr<RoundingStats> MergeBlock(const DeltaProduct& product, const MatrixView& weight,
                                         int64_t first, int64_t count,
                                         const MutableMatrixView& merged) {
  const float* rows = product.Rows(first, count);
  RoundingStats stats;
  for (const PackedMatrix::Chunk& chunk : product.chunks()) {
    ASSIGN_OR_RETURN(const float* delta, product.Multiply(rows, count, chunk));
    stats.Add(AddChunk(weight.Rows(first, count), delta, chunk.first_column, chunk.columns,
                       merged.Rows(first, count)));
  }
  return stats;
}

MergeStats Summarise(const RoundingStats& sums) {
  MergeStats stats;
  stats.max_abs_delta = sums.max_abs_delta;
  stats.max_abs_rounding_error = sums.max_abs_error;
  if (sums.sum_squared_deltas > 0) {
    stats.relative_rounding_error = std::sqrt(sums.sum_squared_errors / sums.sum_squared_deltas);
  }
  stats.zeroed_elements = sums.zeroed;
  stats.non_finite_elements = sums.non_finite;
  return stats;
}

}  // namespace

absl::StatusOr<MergeStats> MergeWeight(const Kernels& kernels, ThreadPool& pool,
                                       const MatrixView& weight, std::span<const MergeTerm> terms,
                                       const MergeOptions& options, const MutableMatrixView& merged,
                                       const Cancellation& cancellation) {
  ASSIGN_OR_RETURN(const DeltaProduct product,
                   DeltaProduct::Create(kernels.impl(), terms, options.layout, weight.cols));
  // One entry per block, summed in order: the result does not depend on who computed which.
  std::vector<RoundingStats> stats(CeilDiv(weight.rows, kBlockRows));
  RETURN_IF_ERROR(ParallelFor(
      pool, static_cast<int64_t>(stats.size()), cancellation, [&](int64_t block) -> absl::Status {
        const int64_t first = block * kBlockRows;
        const int64_t count = std::min(kBlockRows, weight.rows - first);
        ASSIGN_OR_RETURN(stats[block], MergeBlock(product, weight, first, count, merged));
        return absl::OkStatus();
      }));
  RoundingStats sums;
  for (const RoundingStats& block : stats) sums.Add(block);
  if (sums.newly_non_finite > 0 && !options.allow_non_finite) {
    return Error(Reason::kNonFiniteResult,
                 fmt::format("the merge would make {} of {} finite weights infinite or NaN",
                             sums.newly_non_finite, weight.rows * weight.cols));
  }
  return Summarise(sums);
}

}  // namespace adapterd
