#include "core/compute/delta_product.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/base/status_macros.h"
#include "core/compute/scratch.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

int64_t Bucket(int64_t rows) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
}

float Scaled(const MergeTerm& term, float value) { return static_cast<float>(term.factor * value); }

}  // namespace

absl::StatusOr<DeltaProduct> DeltaProduct::Create(Kernels::Impl& kernels,
                                                  std::span<const MergeTerm> terms,
                                                  WeightLayout layout, int64_t columns) {
  int64_t rank = 0;
  for (const MergeTerm& term : terms) rank += term.a.rows;
  ASSIGN_OR_RETURN(PackedMatrix packed, PackedMatrix::Create(MatrixPlan::Wide(
                                            kernels, ComputeType::kF32, rank, columns)));
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

DeltaProduct::DeltaProduct(Kernels::Impl& kernels, std::span<const MergeTerm> terms,
                           WeightLayout layout, PackedMatrix packed)
    : kernels_(kernels),
      terms_(terms.begin(), terms.end()),
      layout_(layout),
      packed_(std::move(packed)) {}

const float* DeltaProduct::Rows(int64_t first, int64_t count) const {
  const int64_t rank = packed_.plan().k;
  const int64_t bucket = Bucket(count);
  auto* rows = Scratch::OfThisThread().Get<float>(Scratch::kLowRank, bucket * rank);
  std::fill(rows + count * rank, rows + bucket * rank, 0.0f);
  int64_t column = 0;
  for (const MergeTerm& term : terms_) {
    if (layout_ == WeightLayout::kOutIn) {
      CopyRowsOfB(term, first, count, rows + column);
    } else {
      CopyColumnsOfA(term, first, count, rows + column);
    }
    column += term.a.rows;
  }
  return rows;
}

absl::StatusOr<float*> DeltaProduct::Multiply(const float* rows, int64_t count,
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

void DeltaProduct::CopyRowsOfB(const MergeTerm& term, int64_t first, int64_t count,
                               float* rows) const {
  for (int64_t i = 0; i < count; ++i, rows += packed_.plan().k) {
    const MatrixView row = term.b.Rows(first + i, 1);
    ConvertToF32(row.dtype, row.data, rows, row.cols);
    for (int64_t j = 0; j < row.cols; ++j) rows[j] = Scaled(term, rows[j]);
  }
}

void DeltaProduct::CopyColumnsOfA(const MergeTerm& term, int64_t first, int64_t count,
                                  float* rows) const {
  float values[kBlockRows];
  for (int64_t j = 0; j < term.a.rows; ++j) {
    const MatrixView row = term.a.Rows(j, 1);
    ConvertToF32(row.dtype, row.data + first * FloatBytes(row.dtype), values, count);
    for (int64_t i = 0; i < count; ++i) rows[i * packed_.plan().k + j] = Scaled(term, values[i]);
  }
}

}  // namespace adapterd
