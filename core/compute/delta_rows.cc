#include "core/compute/delta_rows.h"

#include <algorithm>
#include <utility>

#include "core/base/status_macros.h"
#include "core/compute/delta_product.h"

namespace adapterd {

static_assert(DeltaRows::kBlockRows == DeltaProduct::kBlockRows);

DeltaRows::DeltaRows(std::unique_ptr<const DeltaProduct> product, int64_t columns)
    : product_(std::move(product)), columns_(columns) {}
DeltaRows::DeltaRows(DeltaRows&&) noexcept = default;
DeltaRows& DeltaRows::operator=(DeltaRows&&) noexcept = default;
DeltaRows::~DeltaRows() = default;

absl::StatusOr<DeltaRows> DeltaRows::Create(const Kernels& kernels, const MergeTerm& term) {
  ASSIGN_OR_RETURN(DeltaProduct product, DeltaProduct::Create(kernels.impl(), {&term, 1},
                                                              WeightLayout::kOutIn, term.a.cols));
  return DeltaRows(std::make_unique<const DeltaProduct>(std::move(product)), term.a.cols);
}

absl::Status DeltaRows::Read(int64_t first, int64_t count, float* rows) const {
  const float* left = product_->Rows(first, count);
  for (const PackedMatrix::Chunk& chunk : product_->chunks()) {
    ASSIGN_OR_RETURN(const float* delta, product_->Multiply(left, count, chunk));
    for (int64_t row = 0; row < count; ++row, delta += chunk.columns) {
      std::copy_n(delta, chunk.columns, rows + row * columns_ + chunk.first_column);
    }
  }
  return absl::OkStatus();
}

}  // namespace adapterd
