#include "core/compute/merge.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"
#include "core/compute/delta_product.h"
#include "core/compute/dora_norms.h"
#include "core/compute/round_values.h"
#include "core/compute/scratch.h"
#include "core/tensor/convert.h"
#include "fmt/format.h"

namespace adapterd {
namespace {

const std::byte* At(const MatrixView& matrix, int64_t row, int64_t col) {
  return matrix.data + (row * matrix.cols + col) * FloatBytes(matrix.dtype);
}

std::byte* At(const MutableMatrixView& matrix, int64_t row, int64_t col) {
  return matrix.data + (row * matrix.cols + col) * FloatBytes(matrix.dtype);
}

// Some rows of the weight, and where they go.
struct Block {
  int64_t first_row = 0;
  MatrixView weight;
  MutableMatrixView merged;

  Block Rows(int64_t first, int64_t count) const {
    return {first_row + first, weight.Rows(first, count), merged.Rows(first, count)};
  }
};

// What deltas are added to: the weight's rows, some or all of them replaced.
class BaseRows {
 public:
  BaseRows(int64_t rows, const std::optional<MergeReplacement>& replacement) {
    if (!replacement.has_value()) return;
    replacement_ = replacement->weight;
    all_replaced_ = replacement->ids.empty();
    if (all_replaced_) return;
    replaced_by_.assign(rows, kKept);
    for (size_t i = 0; i < replacement->ids.size(); ++i) {
      replaced_by_[replacement->ids[i]] = static_cast<int64_t>(i);
    }
  }

  // Apart from rows that are replaced one by one.
  MatrixView Rows(int64_t first_row, const MatrixView& weight) const {
    return all_replaced_ ? replacement_.Rows(first_row, weight.rows) : weight;
  }
  bool IsReplaced(int64_t row) const {
    return all_replaced_ || (!replaced_by_.empty() && replaced_by_[row] != kKept);
  }
  bool AnyReplaced(int64_t first, int64_t count) const {
    for (int64_t row = first; row < first + count; ++row) {
      if (IsReplaced(row)) return true;
    }
    return false;
  }
  // Of a row that is replaced.
  MatrixView Replacement(int64_t row) const {
    return replacement_.Rows(all_replaced_ ? row : replaced_by_[row], 1);
  }

 private:
  static constexpr int64_t kKept = -1;

  bool all_replaced_ = false;
  MatrixView replacement_;
  std::vector<int64_t> replaced_by_;  // by row of the weight; empty when none is replaced
};

}  // namespace

class WeightMerge::Impl {
 public:
  Impl(DeltaProduct product, std::optional<DoraNorms> norms, const MergeOptions& options,
       int64_t rows, int64_t cols)
      : product_(std::move(product)),
        norms_(std::move(norms)),
        options_(options),
        base_(rows, options.replacement),
        outputs_(options.layout == WeightLayout::kOutIn ? rows : cols) {
    if (options.gains != nullptr) gains_.assign(options.gains, options.gains + outputs_);
  }

  bool needs_norms() const { return norms_.has_value() && !OutIn(); }

  absl::Status AddNorms(ThreadPool& pool, int64_t first_row, const MatrixView& weight,
                        const Cancellation& cancellation) {
    return norms_->Add(pool, first_row, base_.Rows(first_row, weight), cancellation);
  }

  absl::Status Merge(ThreadPool& pool, const Block& block, const Cancellation& cancellation) {
    RETURN_IF_ERROR(FindGains(pool, block, cancellation));
    // One entry per piece, summed in order: the result does not depend on who computed which.
    std::vector<RoundingStats> stats(CeilDiv(block.weight.rows, DeltaProduct::kBlockRows));
    RETURN_IF_ERROR(ParallelFor(
        pool, static_cast<int64_t>(stats.size()), cancellation, [&](int64_t piece) -> absl::Status {
          const int64_t first = piece * DeltaProduct::kBlockRows;
          const int64_t count = std::min(DeltaProduct::kBlockRows, block.weight.rows - first);
          ASSIGN_OR_RETURN(stats[piece], MergeRows(block.Rows(first, count)));
          return absl::OkStatus();
        }));
    for (const RoundingStats& piece : stats) sums_.Add(piece);
    elements_ += block.weight.rows * block.weight.cols;
    if (sums_.newly_non_finite == 0 || options_.allow_non_finite) return absl::OkStatus();
    return Error(Reason::kNonFiniteResult,
                 fmt::format("the merge would make {} of {} finite weights infinite or NaN",
                             sums_.newly_non_finite, elements_));
  }

  const RoundingStats& sums() const { return sums_; }

 private:
  bool OutIn() const { return options_.layout == WeightLayout::kOutIn; }

  // The gains of these rows, or, once, those of all columns.
  absl::Status FindGains(ThreadPool& pool, const Block& block, const Cancellation& cancellation) {
    if (!norms_.has_value() || (!OutIn() && !gains_.empty())) return absl::OkStatus();
    const int64_t first = OutIn() ? block.first_row : 0;
    const int64_t count = OutIn() ? block.weight.rows : outputs_;
    gains_.resize(outputs_);
    if (OutIn()) RETURN_IF_ERROR(AddNorms(pool, first, block.weight, cancellation));
    const std::vector<float> gains = DoraGains(
        {options_.magnitude + first, static_cast<size_t>(count)}, norms_->Finish(first, count));
    std::ranges::copy(gains, gains_.begin() + first);
    return absl::OkStatus();
  }

  absl::StatusOr<RoundingStats> MergeRows(const Block& block) const {
    const int64_t count = block.weight.rows;
    const float* rows = product_.Rows(block.first_row, count);
    const bool adds = OnlyAdds(block) && !base_.AnyReplaced(block.first_row, count);
    RoundingStats stats;
    for (const PackedMatrix::Chunk& chunk : product_.chunks()) {
      ASSIGN_OR_RETURN(float* delta, product_.Multiply(rows, count, chunk));
      if (adds && chunk.columns == block.weight.cols) {
        stats.Add(AddRounded(block.weight.dtype, block.weight.data, delta, block.merged.data,
                             count * block.weight.cols));
        continue;
      }
      for (int64_t row = 0; row < count; ++row, delta += chunk.columns) {
        const Block one = block.Rows(row, 1);
        stats.Add(OnlyAdds(one) && !base_.IsReplaced(one.first_row) ? AddRow(one, chunk, delta)
                                                                    : RoundRow(one, chunk, delta));
      }
    }
    return stats;
  }

  bool OnlyAdds(const Block& block) const {
    return gains_.empty() && block.weight.dtype == block.merged.dtype;
  }

  static RoundingStats AddRow(const Block& row, const PackedMatrix::Chunk& chunk,
                              const float* delta) {
    return AddRounded(row.weight.dtype, At(row.weight, 0, chunk.first_column), delta,
                      At(row.merged, 0, chunk.first_column), chunk.columns);
  }

  // `delta` becomes the values.
  RoundingStats RoundRow(const Block& row, const PackedMatrix::Chunk& chunk, float* delta) const {
    auto* base = Scratch::OfThisThread().Get<float>(Scratch::kInputF32, chunk.columns);
    const MatrixView from =
        base_.IsReplaced(row.first_row) ? base_.Replacement(row.first_row) : row.weight;
    ConvertToF32(from.dtype, At(from, 0, chunk.first_column), base, chunk.columns);
    for (int64_t i = 0; i < chunk.columns; ++i) {
      delta[i] = delta[i] == 0 ? base[i] : base[i] + delta[i];  // -0 + 0 would be 0
    }
    ApplyGains(row.first_row, chunk, delta);
    return RoundValues(row.weight.dtype, At(row.weight, 0, chunk.first_column), delta,
                       row.merged.dtype, At(row.merged, 0, chunk.first_column), chunk.columns);
  }

  void ApplyGains(int64_t row, const PackedMatrix::Chunk& chunk, float* values) const {
    if (gains_.empty()) return;
    if (OutIn()) {
      for (int64_t i = 0; i < chunk.columns; ++i) values[i] *= gains_[row];
    } else {
      const float* gains = gains_.data() + chunk.first_column;
      for (int64_t i = 0; i < chunk.columns; ++i) values[i] *= gains[i];
    }
  }

  const DeltaProduct product_;
  std::optional<DoraNorms> norms_;  // none: no magnitude, or gains that are known
  const MergeOptions options_;
  const BaseRows base_;
  const int64_t outputs_;
  std::vector<float> gains_;  // DoRA's, by output, as far as they are known; empty without
  RoundingStats sums_;
  int64_t elements_ = 0;
};

absl::StatusOr<WeightMerge> WeightMerge::Create(const Kernels& kernels,
                                                std::span<const MergeTerm> terms,
                                                const MergeOptions& options, int64_t rows,
                                                int64_t cols) {
  std::optional<DoraNorms> norms;
  if (options.magnitude != nullptr && options.gains == nullptr) {
    ASSIGN_OR_RETURN(norms, DoraNorms::Create(kernels, terms[0], options.layout, rows, cols));
  }
  ASSIGN_OR_RETURN(DeltaProduct product,
                   DeltaProduct::Create(kernels.impl(), terms, options.layout, cols));
  return WeightMerge(
      std::make_unique<Impl>(std::move(product), std::move(norms), options, rows, cols));
}

WeightMerge::WeightMerge(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
WeightMerge::WeightMerge(WeightMerge&&) noexcept = default;
WeightMerge& WeightMerge::operator=(WeightMerge&&) noexcept = default;
WeightMerge::~WeightMerge() = default;

bool WeightMerge::NeedsNorms() const { return impl_->needs_norms(); }

absl::Status WeightMerge::AddNorms(ThreadPool& pool, int64_t first_row, const MatrixView& weight,
                                   const Cancellation& cancellation) {
  return impl_->AddNorms(pool, first_row, weight, cancellation);
}

absl::Status WeightMerge::Merge(ThreadPool& pool, int64_t first_row, const MatrixView& weight,
                                const MutableMatrixView& merged, const Cancellation& cancellation) {
  return impl_->Merge(pool, {first_row, weight, merged}, cancellation);
}

const RoundingStats& WeightMerge::sums() const { return impl_->sums(); }

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

absl::StatusOr<MergeStats> MergeWeight(const Kernels& kernels, ThreadPool& pool,
                                       const MatrixView& weight, std::span<const MergeTerm> terms,
                                       const MergeOptions& options, const MutableMatrixView& merged,
                                       const Cancellation& cancellation) {
  ASSIGN_OR_RETURN(WeightMerge merge,
                   WeightMerge::Create(kernels, terms, options, weight.rows, weight.cols));
  if (merge.NeedsNorms()) RETURN_IF_ERROR(merge.AddNorms(pool, 0, weight, cancellation));
  RETURN_IF_ERROR(merge.Merge(pool, 0, weight, merged, cancellation));
  return Summarise(merge.sums());
}

}  // namespace adapterd
