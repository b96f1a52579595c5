#include "core/compute/packed_pair.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/compute/pair_impl.h"
#include "core/compute/scratch.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// AMX multiplies 32 BF16 at a time; for less of the low-rank rows oneDNN falls back to kernels that
// are several times slower.
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

MatrixPlan ShrinkPlanBF16(bool has_panels, const PairShape& shape) {
  const int64_t n = RoundUp(shape.rank, kVectorColumns);
  if (!has_panels) return {ComputeType::kBF16, shape.in_features, n, 0, n};
  if (n <= kWidestPanel) return {ComputeType::kBF16, shape.in_features, n, n, n};
  const int64_t wide = RoundUp(n, kWidestPanel);
  const int64_t narrow = RoundUp(n, kWidestPanel / 2);
  const int64_t least = std::min(wide, narrow);
  return {ComputeType::kBF16, shape.in_features, least,
          wide == least ? kWidestPanel : kWidestPanel / 2, least};
}

// Whether widening what a product takes of them fits a thread's scratch.
bool StaysF16(const PairTypes& types, DType stored, int64_t k, int64_t n) {
  constexpr int64_t kFloat = sizeof(float);
  return types.type == ComputeType::kF32 && stored == DType::kF16 &&
         k <= kScratchBytes / kFloat / n;
}

MatrixPlan ShrinkPlan(const Kernels::Impl& kernels, const PairShape& shape,
                      const PairTypes& types) {
  const bool panels = kernels.has_panels(types.type);
  MatrixPlan plan = types.type == ComputeType::kF32 ? ShrinkPlanF32(panels, shape)
                                                    : ShrinkPlanBF16(panels, shape);
  plan.is_f16 = StaysF16(types, types.lora_a, plan.k, plan.n);
  return plan;
}

MatrixPlan ExpandPlan(const Kernels::Impl& kernels, const PairShape& shape,
                      const PairTypes& types) {
  const bool bf16 = types.type == ComputeType::kBF16;
  const bool amx = bf16 && kernels.has_amx();
  // A single BF16 row would leave half of the last pair unset.
  const int64_t k = RoundUp(shape.rank, amx ? kAmxRank : bf16 ? int64_t{2} : int64_t{1});
  MatrixPlan plan = MatrixPlan::Wide(kernels, types.type, k, shape.out_features);
  plan.is_f16 = StaysF16(types, types.lora_b, k, MatrixPlan::kChunkColumns);
  return plan;
}

Tensor Unpack(const PackedMatrix& transposed, DType dtype, int64_t rows, int64_t cols) {
  AlignedBuffer buffer(rows * cols * FloatBytes(dtype));
  transposed.UnpackTransposed({dtype, rows, cols, buffer.data()});
  return {dtype, {rows, cols}, std::move(buffer)};
}

// Whether rounding up cannot overflow.
bool IsCountable(const PairShape& shape) {
  constexpr int64_t kMaxDimension = int64_t{1} << 32;
  return std::max({shape.in_features, shape.rank, shape.out_features}) < kMaxDimension;
}

absl::StatusOr<int64_t> SumOfBytes(std::optional<int64_t> a, std::optional<int64_t> b) {
  const auto sum = a.has_value() && b.has_value() ? CheckedAdd(*a, *b) : std::nullopt;
  if (!sum.has_value()) return Error(Reason::kShapeMismatch, "a pair is too large to pack");
  return *sum;
}

}  // namespace

PairPlan PairPlan::For(const Kernels::Impl& kernels, const PairShape& shape,
                       const PairTypes& types) {
  return {ShrinkPlan(kernels, shape, types), ExpandPlan(kernels, shape, types)};
}

absl::StatusOr<std::unique_ptr<const PackedPair::Impl>> PackedPair::Impl::Create(
    Kernels::Impl& kernels, const MatrixView& a, const MatrixView& b, ComputeType type) {
  const PairPlan plan = PairPlan::For(kernels, {a.cols, a.rows, b.rows}, {type, a.dtype, b.dtype});
  ASSIGN_OR_RETURN(PackedMatrix shrink, PackedMatrix::Transposed(plan.shrink, a));
  return Finish(kernels, plan.expand, a, b, std::move(shrink));
}

absl::StatusOr<std::unique_ptr<const PackedPair::Impl>> PackedPair::Impl::CreateEmbedding(
    Kernels::Impl& kernels, const MatrixView& a, const MatrixView& b) {
  const PairShape shape = {a.cols, a.rows, b.rows};
  const PairTypes types = {ComputeType::kF32, a.dtype, b.dtype};
  return Finish(kernels, ExpandPlan(kernels, shape, types), a, b, EmbeddingTable(a));
}

absl::StatusOr<std::unique_ptr<const PackedPair::Impl>> PackedPair::Impl::Finish(
    Kernels::Impl& kernels, const MatrixPlan& expand_plan, const MatrixView& a, const MatrixView& b,
    FactorA shrink) {
  ASSIGN_OR_RETURN(PackedMatrix expand, PackedMatrix::Transposed(expand_plan, b));
  const bool few_rows = expand_plan.type == ComputeType::kBF16 && !kernels.has_amx();
  auto impl = std::unique_ptr<const Impl>(new Impl({a.cols, a.rows, b.rows},
                                                   few_rows ? kCachedRows : kMaxBlockRows,
                                                   std::move(shrink), std::move(expand)));
  RETURN_IF_ERROR(impl->Prepare(kernels));
  return impl;
}

int64_t PackedPair::Impl::bytes() const {
  return expand_.bytes() + std::visit([](const auto& a) { return a.bytes(); }, shrink_);
}

Tensor PackedPair::Impl::UnpackA(DType dtype) const {
  return is_embedding() ? std::get<EmbeddingTable>(shrink_).Unpack(dtype)
                        : Unpack(matrix_a(), dtype, shape_.rank, shape_.in_features);
}

Tensor PackedPair::Impl::UnpackB(DType dtype) const {
  return Unpack(expand_, dtype, shape_.out_features, shape_.rank);
}

bool PackedPair::Impl::IsSmall(const Kernels::Impl& kernels, int64_t rows) const {
  const SmallRows& small = kernels.small_rows(type());
  const bool is_f16 = expand_.plan().is_f16 && !is_embedding() && matrix_a().plan().is_f16;
  return rows <= (is_f16 ? small.max_f16_rows : small.max_rows) && shape_.rank <= small.max_rank;
}

MatmulShape PackedPair::Impl::ShrinkShape(int64_t rows) const {
  const MatrixPlan& plan = matrix_a().plan();
  return {plan.type, rows, plan.k, plan.n, plan.panel};
}

MatmulShape PackedPair::Impl::ExpandShape(int64_t rows, int64_t columns,
                                          const SumsForm& sums) const {
  const MatrixPlan& plan = expand_.plan();
  return {plan.type, rows, plan.k, columns, plan.panel, sums.accumulate, sums.narrow};
}

absl::Status PackedPair::Impl::Prepare(Kernels::Impl& kernels) const {
  absl::InlinedVector<MatmulShape, 7 * kRowBuckets> shapes;
  // All steps but the last have one shape.
  const int64_t first = std::min(column_step(), shape_.out_features);
  const int64_t last = shape_.out_features % first;
  for (int64_t rows = 1; rows <= kMaxBlockRows; rows *= 2) {
    if (IsSmall(kernels, rows)) continue;
    if (!is_embedding() && rows <= shrink_rows_) shapes.push_back(ShrinkShape(rows));
    for (const SumsForm sums :
         {SumsForm{}, SumsForm{.accumulate = true}, SumsForm{.narrow = true}}) {
      if (sums.narrow && type() != ComputeType::kBF16) continue;
      shapes.push_back(ExpandShape(rows, first, sums));
      if (last != 0) shapes.push_back(ExpandShape(rows, last, sums));
    }
  }
  return kernels.Prepare(shapes);
}

absl::Status PackedPair::Impl::Shrink(Kernels::Impl& kernels, int64_t rows, const void* input,
                                      double factor, std::byte* low_rank) const {
  const MatrixPlan& plan = matrix_a().plan();
  const int64_t kept = expand_.plan().k;
  const int64_t computed = ComputedRows(kernels, rows);
  const bool in_place = plan.type == ComputeType::kF32 && plan.n == kept;
  float* wide = in_place
                    ? reinterpret_cast<float*>(low_rank)
                    : Scratch::OfThisThread().Get<float>(Scratch::kWideLowRank, computed * plan.n);
  RETURN_IF_ERROR(MultiplyA(kernels, computed, input, wide));
  if (plan.type == ComputeType::kF32) {
    Scale(computed, wide, factor, reinterpret_cast<float*>(low_rank));
    return absl::OkStatus();
  }
  ScaleToBF16(computed, wide, factor, low_rank);
  return absl::OkStatus();
}

absl::Status PackedPair::Impl::MultiplyA(Kernels::Impl& kernels, int64_t rows, const void* input,
                                         float* wide) const {
  const MatrixPlan& plan = matrix_a().plan();
  if (IsSmall(kernels, rows)) {
    kernels.small_rows(plan.type).multiply({.rows = rows,
                                            .k = plan.k,
                                            .n = plan.n,
                                            .source = input,
                                            .source_stride = plan.k,
                                            .weights = matrix_a().At(0),
                                            .weights_are_f16 = plan.is_f16,
                                            .panel = plan.panel == 0 ? plan.n : plan.panel,
                                            .stored_k = plan.stored_k(),
                                            .destination = wide,
                                            .destination_stride = plan.n});
    return absl::OkStatus();
  }
  const std::byte* weights = matrix_a().ForKernel(0, plan.n);
  const int64_t step = std::min(rows, shrink_rows_);
  for (int64_t row = 0; row < rows; row += step) {
    const auto* from =
        static_cast<const std::byte*>(input) + row * plan.k * ElementBytes(plan.type);
    RETURN_IF_ERROR(kernels.Run(ShrinkShape(step), from, weights, wide + row * plan.n));
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
    wide += matrix_a().plan().n;
    low_rank += kept;
  }
}

void PackedPair::Impl::ScaleToBF16(int64_t rows, float* wide, double factor,
                                   std::byte* low_rank) const {
  const auto scale = static_cast<float>(factor);
  const int64_t kept = expand_.plan().k;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < shape_.rank; ++i) wide[i] *= scale;
    ConvertFromF32(wide, DType::kBF16, low_rank, shape_.rank);
    std::fill(low_rank + shape_.rank * 2, low_rank + kept * 2, std::byte{0});
    wide += matrix_a().plan().n;
    low_rank += kept * 2;
  }
}

void PackedPair::Impl::Lookup(const Kernels::Impl& kernels, std::span<const int64_t> ids,
                              double factor, std::byte* low_rank) const {
  auto* values = reinterpret_cast<float*>(low_rank);
  const auto count = static_cast<int64_t>(ids.size());
  std::get<EmbeddingTable>(shrink_).Lookup(ids, factor, values);
  std::fill(values + count * shape_.rank, values + ComputedRows(kernels, count) * shape_.rank,
            0.0f);
}

absl::Status PackedPair::Impl::Expand(Kernels::Impl& kernels, int64_t rows,
                                      const std::byte* low_rank, const Columns& columns,
                                      const SumsForm& form, void* sums) const {
  if (IsSmall(kernels, rows)) {
    ExpandSmall(kernels, rows, low_rank, columns, form, {sums, columns.count});
    return absl::OkStatus();
  }
  return kernels.Run(ExpandShape(RowBucket(rows), columns.count, form), low_rank,
                     expand_.ForKernel(columns.first, columns.count), sums);
}

void PackedPair::Impl::ExpandSmall(const Kernels::Impl& kernels, int64_t rows,
                                   const std::byte* low_rank, const Columns& columns,
                                   const SumsForm& form, const SumsPlace& sums) const {
  const MatrixPlan& plan = expand_.plan();
  kernels.small_rows(plan.type).multiply({.rows = rows,
                                          .k = shape_.rank,
                                          .n = columns.count,
                                          .source = low_rank,
                                          .source_stride = plan.k,
                                          .weights = expand_.At(columns.first),
                                          .weights_are_f16 = plan.is_f16,
                                          .panel = plan.panel == 0 ? columns.count : plan.panel,
                                          .stored_k = plan.stored_k(),
                                          .destination = sums.data,
                                          .destination_stride = sums.stride,
                                          .accumulate = form.accumulate,
                                          .narrow = form.narrow});
}

absl::StatusOr<int64_t> PackedPair::BytesFor(const Kernels& kernels, const PairShape& shape,
                                             const PairTypes& types) {
  if (!IsCountable(shape)) return SumOfBytes(std::nullopt, std::nullopt);
  const PairPlan plan = PairPlan::For(kernels.impl(), shape, types);
  return SumOfBytes(plan.shrink.bytes(), plan.expand.bytes());
}

absl::StatusOr<int64_t> PackedPair::EmbeddingBytesFor(const Kernels& kernels,
                                                      const PairShape& shape,
                                                      const PairTypes& types) {
  if (!IsCountable(shape)) return SumOfBytes(std::nullopt, std::nullopt);
  return SumOfBytes(EmbeddingTable::BytesFor(shape.in_features, shape.rank, types.lora_a),
                    ExpandPlan(kernels.impl(), shape, types).bytes());
}

absl::StatusOr<std::unique_ptr<const PackedPair>> PackedPair::Pack(const Kernels& kernels,
                                                                   const MatrixView& a,
                                                                   const MatrixView& b,
                                                                   ComputeType type) {
  ASSIGN_OR_RETURN(auto impl, Impl::Create(kernels.impl(), a, b, type));
  return std::unique_ptr<const PackedPair>(new PackedPair(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<const PackedPair>> PackedPair::PackEmbedding(const Kernels& kernels,
                                                                            const MatrixView& a,
                                                                            const MatrixView& b) {
  ASSIGN_OR_RETURN(auto impl, Impl::CreateEmbedding(kernels.impl(), a, b));
  return std::unique_ptr<const PackedPair>(new PackedPair(std::move(impl)));
}

PackedPair::PackedPair(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
PackedPair::~PackedPair() = default;

const PairShape& PackedPair::shape() const { return impl_->shape(); }
Tensor PackedPair::UnpackA(DType dtype) const { return impl_->UnpackA(dtype); }
Tensor PackedPair::UnpackB(DType dtype) const { return impl_->UnpackB(dtype); }
ComputeType PackedPair::type() const { return impl_->type(); }
bool PackedPair::is_embedding() const { return impl_->is_embedding(); }
int64_t PackedPair::bytes() const { return impl_->bytes(); }

}  // namespace adapterd
