#include "core/compute/merge.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"
#include "core/compute/add_rounded.h"
#include "core/compute/delta_product.h"
#include "core/compute/dora_norms.h"
#include "core/compute/round_values.h"
#include "core/compute/scratch.h"
#include "core/tensor/convert.h"
#include "fmt/format.h"

namespace adapterd {
namespace {

// What deltas are added to: the weight's rows, some or all of them replaced.
class BaseRows {
 public:
  BaseRows(const MatrixView& weight, const std::optional<MergeReplacement>& replacement)
      : rows_(weight) {
    if (!replacement.has_value()) return;
    if (replacement->ids.empty()) {
      rows_ = replacement->weight;
      all_replaced_ = true;
      return;
    }
    replacement_ = replacement->weight;
    replaced_by_.assign(weight.rows, kKept);
    for (size_t i = 0; i < replacement->ids.size(); ++i) {
      replaced_by_[replacement->ids[i]] = static_cast<int64_t>(i);
    }
  }

  // Apart from rows that are replaced one by one.
  const MatrixView& rows() const { return rows_; }

  bool IsReplaced(int64_t row) const {
    return all_replaced_ || (!replaced_by_.empty() && replaced_by_[row] != kKept);
  }
  bool AnyReplaced(int64_t first, int64_t count) const {
    for (int64_t row = first; row < first + count; ++row) {
      if (IsReplaced(row)) return true;
    }
    return false;
  }
  MatrixView Row(int64_t row) const {
    return all_replaced_ || !IsReplaced(row) ? rows_.Rows(row, 1)
                                             : replacement_.Rows(replaced_by_[row], 1);
  }

 private:
  static constexpr int64_t kKept = -1;

  MatrixView rows_;
  bool all_replaced_ = false;
  MatrixView replacement_;
  std::vector<int64_t> replaced_by_;  // by row of the weight; empty when none is replaced
};

const std::byte* At(const MatrixView& matrix, int64_t row, int64_t col) {
  return matrix.data + (row * matrix.cols + col) * FloatBytes(matrix.dtype);
}

std::byte* At(const MutableMatrixView& matrix, int64_t row, int64_t col) {
  return matrix.data + (row * matrix.cols + col) * FloatBytes(matrix.dtype);
}

// One call of MergeWeight, once its factors are packed. Threads: merges blocks at the same time.
class Merge {
 public:
  Merge(DeltaProduct product, const MatrixView& weight, BaseRows base, WeightLayout layout,
        std::vector<float> gains, const MutableMatrixView& merged)
      : product_(std::move(product)),
        weight_(weight),
        base_(std::move(base)),
        layout_(layout),
        gains_(std::move(gains)),
        merged_(merged) {}

  absl::StatusOr<RoundingStats> Block(int64_t first, int64_t count) const {
    const float* rows = product_.Rows(first, count);
    const bool adds = OnlyAdds() && !base_.AnyReplaced(first, count);
    RoundingStats stats;
    for (const PackedMatrix::Chunk& chunk : product_.chunks()) {
      ASSIGN_OR_RETURN(float* delta, product_.Multiply(rows, count, chunk));
      if (adds && chunk.columns == weight_.cols) {
        stats.Add(AddRounded(weight_.dtype, At(weight_, first, 0), delta, At(merged_, first, 0),
                             count * weight_.cols));
        continue;
      }
      for (int64_t row = first; row < first + count; ++row, delta += chunk.columns) {
        stats.Add(OnlyAdds() && !base_.IsReplaced(row) ? AddRow(row, chunk, delta)
                                                       : RoundRow(row, chunk, delta));
      }
    }
    return stats;
  }

 private:
  bool OnlyAdds() const { return gains_.empty() && weight_.dtype == merged_.dtype; }

  RoundingStats AddRow(int64_t row, const PackedMatrix::Chunk& chunk, const float* delta) const {
    return AddRounded(weight_.dtype, At(weight_, row, chunk.first_column), delta,
                      At(merged_, row, chunk.first_column), chunk.columns);
  }

  // `delta` becomes the values.
  RoundingStats RoundRow(int64_t row, const PackedMatrix::Chunk& chunk, float* delta) const {
    auto* base = Scratch::OfThisThread().Get<float>(Scratch::kInputF32, chunk.columns);
    const MatrixView from = base_.Row(row);
    ConvertToF32(from.dtype, At(from, 0, chunk.first_column), base, chunk.columns);
    for (int64_t i = 0; i < chunk.columns; ++i) {
      delta[i] = delta[i] == 0 ? base[i] : base[i] + delta[i];  // -0 + 0 would be 0
    }
    ApplyGains(row, chunk, delta);
    return RoundValues(weight_.dtype, At(weight_, row, chunk.first_column), delta, merged_.dtype,
                       At(merged_, row, chunk.first_column), chunk.columns);
  }

  void ApplyGains(int64_t row, const PackedMatrix::Chunk& chunk, float* values) const {
    if (gains_.empty()) return;
    if (layout_ == WeightLayout::kOutIn) {
      for (int64_t i = 0; i < chunk.columns; ++i) values[i] *= gains_[row];
    } else {
      const float* gains = gains_.data() + chunk.first_column;
      for (int64_t i = 0; i < chunk.columns; ++i) values[i] *= gains[i];
    }
  }

  const DeltaProduct product_;
  const MatrixView weight_;
  const BaseRows base_;
  const WeightLayout layout_;
  const std::vector<float> gains_;  // DoRA's, by output; empty without
  const MutableMatrixView merged_;
};

absl::StatusOr<std::vector<float>> Gains(const Kernels& kernels, ThreadPool& pool,
                                         const MatrixView& base, std::span<const MergeTerm> terms,
                                         const MergeOptions& options,
                                         const Cancellation& cancellation) {
  if (options.magnitude == nullptr) return std::vector<float>();
  ASSIGN_OR_RETURN(DoraNorms norms,
                   DoraNorms::Create(kernels, terms[0], options.layout, base.rows, base.cols));
  RETURN_IF_ERROR(norms.Add(pool, 0, base, cancellation));
  const std::vector<double> finished = norms.Finish();
  return DoraGains({options.magnitude, finished.size()}, finished);
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
  BaseRows base(weight, options.replacement);
  ASSIGN_OR_RETURN(std::vector<float> gains,
                   Gains(kernels, pool, base.rows(), terms, options, cancellation));
  ASSIGN_OR_RETURN(DeltaProduct product,
                   DeltaProduct::Create(kernels.impl(), terms, options.layout, weight.cols));
  const Merge merge(std::move(product), weight, std::move(base), options.layout, std::move(gains),
                    merged);
  // One entry per block, summed in order: the result does not depend on who computed which.
  std::vector<RoundingStats> stats(CeilDiv(weight.rows, DeltaProduct::kBlockRows));
  RETURN_IF_ERROR(ParallelFor(
      pool, static_cast<int64_t>(stats.size()), cancellation, [&](int64_t block) -> absl::Status {
        const int64_t first = block * DeltaProduct::kBlockRows;
        const int64_t count = std::min(DeltaProduct::kBlockRows, weight.rows - first);
        ASSIGN_OR_RETURN(stats[block], merge.Block(first, count));
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
