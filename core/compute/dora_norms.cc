#include "core/compute/dora_norms.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/base/checked_math.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"
#include "core/compute/delta_product.h"
#include "core/compute/scratch.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// Rows that are added at once are cut into at most this many parts, which threads share. Columns
// have sums of their own in each part.
constexpr int64_t kMaxParts = 32;

double SumOfSquares(const float* weight, const float* delta, int64_t count) {
  constexpr int kLanes = 8;  // floats must be added in the order of the program: one per lane
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = double{weight[i + lane]} + double{delta[i + lane]};
      lanes[lane] += value * value;
    }
  }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  for (; i < count; ++i) {
    const double value = double{weight[i]} + double{delta[i]};
    sum += value * value;
  }
  return sum;
}

void AddSquares(const float* weight, const float* delta, int64_t count, double* sums) {
  for (int64_t i = 0; i < count; ++i) {
    const double value = double{weight[i]} + double{delta[i]};
    sums[i] += value * value;
  }
}

}  // namespace

class DoraNorms::Impl {
 public:
  Impl(DeltaProduct product, WeightLayout layout, int64_t outputs)
      : product_(std::move(product)), layout_(layout), sums_(outputs, 0.0) {}

  absl::Status Add(ThreadPool& pool, int64_t first_row, const MatrixView& weight,
                   const Cancellation& cancellation) {
    const int64_t part_rows = RoundUp(CeilDiv(weight.rows, kMaxParts), DeltaProduct::kBlockRows);
    std::vector<std::vector<double>> parts(CeilDiv(weight.rows, part_rows));
    RETURN_IF_ERROR(ParallelFor(
        pool, static_cast<int64_t>(parts.size()), cancellation, [&](int64_t part) -> absl::Status {
          const int64_t first = part * part_rows;
          ASSIGN_OR_RETURN(parts[part],
                           SumsOf(first_row + first,
                                  weight.Rows(first, std::min(part_rows, weight.rows - first))));
          return absl::OkStatus();
        }));
    // In order, whoever computed which.
    double* sums = sums_.data() + (layout_ == WeightLayout::kOutIn ? first_row : 0);
    for (const std::vector<double>& part : parts) {
      for (size_t i = 0; i < part.size(); ++i) sums[i] += part[i];
      if (layout_ == WeightLayout::kOutIn) sums += part.size();
    }
    return absl::OkStatus();
  }

  std::vector<double> Finish(int64_t first, int64_t count) const {
    std::vector<double> norms(count);
    std::transform(sums_.begin() + first, sums_.begin() + first + count, norms.begin(),
                   [](double sum) { return std::sqrt(sum); });
    return norms;
  }

  int64_t outputs() const { return static_cast<int64_t>(sums_.size()); }

 private:
  // Of these rows: a sum for each, or one for each column.
  absl::StatusOr<std::vector<double>> SumsOf(int64_t first_row, const MatrixView& weight) const {
    const bool out_in = layout_ == WeightLayout::kOutIn;
    std::vector<double> sums(out_in ? weight.rows : weight.cols, 0.0);
    for (int64_t row = 0; row < weight.rows; row += DeltaProduct::kBlockRows) {
      const int64_t count = std::min(DeltaProduct::kBlockRows, weight.rows - row);
      RETURN_IF_ERROR(
          AddBlock(first_row + row, weight.Rows(row, count), sums.data() + (out_in ? row : 0)));
    }
    return sums;
  }

  absl::Status AddBlock(int64_t first_row, const MatrixView& weight, double* sums) const {
    const float* rows = product_.Rows(first_row, weight.rows);
    for (const PackedMatrix::Chunk& chunk : product_.chunks()) {
      ASSIGN_OR_RETURN(const float* delta, product_.Multiply(rows, weight.rows, chunk));
      auto* wide = Scratch::OfThisThread().Get<float>(Scratch::kInputF32, chunk.columns);
      for (int64_t row = 0; row < weight.rows; ++row, delta += chunk.columns) {
        const int64_t at = row * weight.cols + chunk.first_column;
        ConvertToF32(weight.dtype, weight.data + at * FloatBytes(weight.dtype), wide,
                     chunk.columns);
        if (layout_ == WeightLayout::kOutIn) {
          sums[row] += SumOfSquares(wide, delta, chunk.columns);
        } else {
          AddSquares(wide, delta, chunk.columns, sums + chunk.first_column);
        }
      }
    }
    return absl::OkStatus();
  }

  const DeltaProduct product_;
  const WeightLayout layout_;
  std::vector<double> sums_;  // of squares, by output
};

absl::StatusOr<DoraNorms> DoraNorms::Create(const Kernels& kernels, const MergeTerm& term,
                                            WeightLayout layout, int64_t rows, int64_t cols) {
  ASSIGN_OR_RETURN(DeltaProduct product,
                   DeltaProduct::Create(kernels.impl(), {&term, 1}, layout, cols));
  return DoraNorms(std::make_unique<Impl>(std::move(product), layout,
                                          layout == WeightLayout::kOutIn ? rows : cols));
}

DoraNorms::DoraNorms(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DoraNorms::DoraNorms(DoraNorms&&) noexcept = default;
DoraNorms& DoraNorms::operator=(DoraNorms&&) noexcept = default;
DoraNorms::~DoraNorms() = default;

absl::Status DoraNorms::Add(ThreadPool& pool, int64_t first_row, const MatrixView& weight,
                            const Cancellation& cancellation) {
  return impl_->Add(pool, first_row, weight, cancellation);
}

std::vector<double> DoraNorms::Finish() const { return Finish(0, impl_->outputs()); }

std::vector<double> DoraNorms::Finish(int64_t first, int64_t count) const {
  return impl_->Finish(first, count);
}

std::vector<float> DoraGains(std::span<const float> magnitude, std::span<const double> norms) {
  std::vector<float> gains(magnitude.size());
  for (size_t i = 0; i < gains.size(); ++i) {
    const bool usable = std::isfinite(norms[i]) && norms[i] > 0;
    gains[i] = usable ? static_cast<float>(magnitude[i] / norms[i])
                      : std::numeric_limits<float>::quiet_NaN();
  }
  return gains;
}

}  // namespace adapterd
