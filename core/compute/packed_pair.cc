#include "core/compute/packed_pair.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/compute/pair_impl.h"
#include "core/compute/scratch.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// AMX multiplies 32 BF16 at a time; less falls back to kernels that are several times slower.
constexpr int64_t kAmxRank = 32;
// Columns of a vector register of F32, in which the low-rank rows are made.
constexpr int64_t kVectorColumns = 16;
constexpr int64_t kWidestPanel = 64;
// Without AMX: rows of a power-of-two length fall into one set of the first cache, which has 8 or
// 12 ways. With 16 rows a product with one register of columns takes twice as long per row.
constexpr int64_t kCachedRows = 8;

// Transposed A in F32. Up to a panel's width row-major is the same thing without a panel's zeros.
MatrixPlan ShrinkPlanF32(bool has_panels, const PairShape& shape) {
  const int64_t n = shape.rank <= kVectorColumns ? shape.rank : RoundUp(shape.rank, kVectorColumns);
  const int64_t panels = RoundUp(shape.rank, kWidestPanel);
  if (has_panels && n > kWidestPanel && panels * 5 <= shape.rank * 6) {
    return {ComputeType::kF32, shape.in_features, panels, kWidestPanel, panels};
  }
  return {ComputeType::kF32, shape.in_features, n, 0, n};
}

MatrixPlan ShrinkPlanBF16(bool has_panels, bool has_amx, const PairShape& shape) {
  const int64_t n = RoundUp(shape.rank, has_amx ? kAmxRank : kVectorColumns);
  if (!has_panels) return {ComputeType::kBF16, shape.in_features, n, 0, n};
  if (n <= kWidestPanel) return {ComputeType::kBF16, shape.in_features, n, n, n};
  const int64_t wide = RoundUp(n, kWidestPanel);
  const int64_t narrow = RoundUp(n, kWidestPanel / 2);
  const int64_t least = std::min(wide, narrow);
  return {ComputeType::kBF16, shape.in_features, least,
          wide == least ? kWidestPanel : kWidestPanel / 2, least};
}

MatrixPlan ExpandPlan(const Kernels::Impl& kernels, const PairShape& shape, ComputeType type) {
  const bool bf16 = type == ComputeType::kBF16;
  const bool amx = bf16 && kernels.has_amx();
  // A single BF16 row would leave half of the last pair unset.
  const int64_t k = RoundUp(shape.rank, amx ? kAmxRank : bf16 ? int64_t{2} : int64_t{1});
  return MatrixPlan::Wide(kernels, type, k, shape.out_features);
}

}  // namespace

PairPlan PairPlan::For(const Kernels::Impl& kernels, const PairShape& shape, ComputeType type) {
  const bool panels = kernels.has_panels(type);
  return {type == ComputeType::kF32 ? ShrinkPlanF32(panels, shape)
                                    : ShrinkPlanBF16(panels, kernels.has_amx(), shape),
          ExpandPlan(kernels, shape, type)};
}

absl::StatusOr<std::unique_ptr<const PackedPair::Impl>> PackedPair::Impl::Create(
    Kernels::Impl& kernels, const MatrixView& a, const MatrixView& b, ComputeType type) {
  const PairShape shape = {a.cols, a.rows, b.rows};
  const PairPlan plan = PairPlan::For(kernels, shape, type);
  ASSIGN_OR_RETURN(PackedMatrix shrink, PackedMatrix::Create(kernels, plan.shrink));
  shrink.FillTransposed(a, 0);
  ASSIGN_OR_RETURN(PackedMatrix expand, PackedMatrix::Create(kernels, plan.expand));
  expand.FillTransposed(b, 0);
  const bool few_rows = type == ComputeType::kBF16 && !kernels.has_amx();
  auto impl = std::unique_ptr<const Impl>(new Impl(shape, few_rows ? kCachedRows : kMaxBlockRows,
                                                   std::move(shrink), std::move(expand)));
  RETURN_IF_ERROR(impl->Prepare(kernels));
  return impl;
}

MatmulShape PackedPair::Impl::ShrinkShape(int64_t rows) const {
  const MatrixPlan& plan = shrink_.plan();
  return {plan.type, rows, plan.k, plan.n, plan.panel, /*accumulate=*/false};
}

MatmulShape PackedPair::Impl::ExpandShape(int64_t rows, const PackedMatrix::Chunk& chunk,
                                          bool accumulate) const {
  const MatrixPlan& plan = expand_.plan();
  return {plan.type, rows, plan.k, chunk.columns, plan.panel, accumulate};
}

absl::Status PackedPair::Impl::Prepare(Kernels::Impl& kernels) const {
  for (int64_t rows = 1; rows <= kMaxBlockRows; rows *= 2) {
    if (rows <= shrink_rows_) RETURN_IF_ERROR(kernels.Prepare(ShrinkShape(rows)));
    // All chunks but the last have one shape.
    for (const auto* chunk : {&expand_.chunks().front(), &expand_.chunks().back()}) {
      RETURN_IF_ERROR(kernels.Prepare(ExpandShape(rows, *chunk, false)));
      RETURN_IF_ERROR(kernels.Prepare(ExpandShape(rows, *chunk, true)));
    }
  }
  return absl::OkStatus();
}

absl::Status PackedPair::Impl::Shrink(Kernels::Impl& kernels, int64_t rows, const void* input,
                                      double factor, std::byte* low_rank) const {
  const MatrixPlan& plan = shrink_.plan();
  const int64_t kept = expand_.plan().k;
  const bool in_place = plan.type == ComputeType::kF32 && plan.n == kept;
  float* wide = in_place ? reinterpret_cast<float*>(low_rank)
                         : Scratch::OfThisThread().Get<float>(Scratch::kWideLowRank, rows * plan.n);
  const int64_t step = std::min(rows, shrink_rows_);
  for (int64_t row = 0; row < rows; row += step) {
    const auto* from =
        static_cast<const std::byte*>(input) + row * plan.k * ElementBytes(plan.type);
    RETURN_IF_ERROR(kernels.Run(ShrinkShape(step), from, shrink_.chunks().front().weights,
                                wide + row * plan.n));
  }
  if (plan.type == ComputeType::kF32) {
    Scale(rows, wide, factor, reinterpret_cast<float*>(low_rank));
  } else {
    Scale(rows, wide, factor, wide);
    ConvertFromF32(wide, DType::kBF16, low_rank, rows * kept);
  }
  return absl::OkStatus();
}

void PackedPair::Impl::Scale(int64_t rows, const float* wide, double factor,
                             float* low_rank) const {
  const auto scale = static_cast<float>(factor);
  const int64_t kept = expand_.plan().k;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < shape_.rank; ++i) low_rank[i] = wide[i] * scale;
    // Not what the product made of the zeros that pad A: an infinite input makes NaN of them.
    std::fill(low_rank + shape_.rank, low_rank + kept, 0.0f);
    wide += shrink_.plan().n;
    low_rank += kept;
  }
}

absl::Status PackedPair::Impl::Expand(Kernels::Impl& kernels, int64_t rows,
                                      const std::byte* low_rank, const PackedMatrix::Chunk& chunk,
                                      bool accumulate, float* sums) const {
  return kernels.Run(ExpandShape(rows, chunk, accumulate), low_rank, chunk.weights, sums);
}

absl::StatusOr<int64_t> PackedPair::BytesFor(const Kernels& kernels, const PairShape& shape,
                                             ComputeType type) {
  // Below this rounding up does not overflow.
  constexpr int64_t kMaxDimension = int64_t{1} << 32;
  std::optional<int64_t> sum;
  if (std::max({shape.in_features, shape.rank, shape.out_features}) < kMaxDimension) {
    const PairPlan plan = PairPlan::For(kernels.impl(), shape, type);
    const auto shrink = plan.shrink.bytes();
    const auto expand = plan.expand.bytes();
    if (shrink.has_value() && expand.has_value()) sum = CheckedAdd(*shrink, *expand);
  }
  if (!sum.has_value()) return Error(Reason::kShapeMismatch, "a pair is too large to pack");
  return *sum;
}

absl::StatusOr<std::unique_ptr<const PackedPair>> PackedPair::Pack(const Kernels& kernels,
                                                                   const MatrixView& a,
                                                                   const MatrixView& b,
                                                                   ComputeType type) {
  ASSIGN_OR_RETURN(auto impl, Impl::Create(kernels.impl(), a, b, type));
  return std::unique_ptr<const PackedPair>(new PackedPair(std::move(impl)));
}

PackedPair::PackedPair(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
PackedPair::~PackedPair() = default;

const PairShape& PackedPair::shape() const { return impl_->shape(); }
ComputeType PackedPair::type() const { return impl_->type(); }
int64_t PackedPair::bytes() const { return impl_->bytes(); }

}  // namespace adapterd
