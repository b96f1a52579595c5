// The two products of a packed pair, on one block of rows. For this room only.
#ifndef ADAPTERD_CORE_COMPUTE_PAIR_IMPL_H_
#define ADAPTERD_CORE_COMPUTE_PAIR_IMPL_H_

#include <bit>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <variant>

#include "core/compute/embedding_table.h"
#include "core/compute/onednn.h"
#include "core/compute/packed_matrix.h"
#include "core/compute/packed_pair.h"

namespace adapterd {

// Rows that one call of a kernel takes: 1, 2, 4, ... kMaxBlockRows, so that the shapes stay few.
inline constexpr int64_t kMaxBlockRows = 64;
inline constexpr int64_t kRowBuckets = std::bit_width(static_cast<uint64_t>(kMaxBlockRows));
constexpr int64_t RowBucket(int64_t rows) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
}

// How a shape is packed: the rank that is computed and stored is rounded up to what is fast.
struct PairPlan {
  MatrixPlan shrink;  // transposed A: k = in_features, n = columns of the low-rank rows
  MatrixPlan expand;  // transposed B: k = those of them that are kept, n = out_features

  static PairPlan For(const Kernels::Impl& kernels, const PairShape& shape, const PairTypes& types);
};

class PackedPair::Impl {
 public:
  static absl::StatusOr<std::unique_ptr<const Impl>> Create(Kernels::Impl& kernels,
                                                            const MatrixView& a,
                                                            const MatrixView& b, ComputeType type);

  static absl::StatusOr<std::unique_ptr<const Impl>> CreateEmbedding(Kernels::Impl& kernels,
                                                                     const MatrixView& a,
                                                                     const MatrixView& b);

  const PairShape& shape() const { return shape_; }
  ComputeType type() const { return expand_.plan().type; }
  bool is_embedding() const { return std::holds_alternative<EmbeddingTable>(shrink_); }
  int64_t bytes() const;

  Tensor UnpackA(DType dtype) const;
  Tensor UnpackB(DType dtype) const;

  // Bytes of one low-rank row, which is of type().
  int64_t low_rank_bytes() const { return expand_.plan().k * ElementBytes(type()); }

  // Whether our own loops take products of so many rows.
  bool IsSmall(const Kernels::Impl& kernels, int64_t rows) const;
  // Rows that are computed for so many: also the last of them are read and written.
  int64_t ComputedRows(const Kernels::Impl& kernels, int64_t rows) const {
    return IsSmall(kernels, rows) ? rows : RowBucket(rows);
  }

  // low_rank = factor * input A^T. input is [computed rows, in_features] of type().
  // REQUIRES: !is_embedding().
  absl::Status Shrink(Kernels::Impl& kernels, int64_t rows, const void* input, double factor,
                      std::byte* low_rank) const;
  // low_rank = factor * A[:, ids]^T, and zeros up to the computed rows. REQUIRES: is_embedding().
  void Lookup(const Kernels::Impl& kernels, std::span<const int64_t> ids, double factor,
              std::byte* low_rank) const;

  // Columns of the output that are best computed at once: F32 sums go to where kernels write them
  // fastest, those that are to be rounded and weights that are to be widened stay in the cache
  // until then. A product may also take the step of a pair that has a longer one.
  int64_t column_step() const {
    const MatrixPlan& plan = expand_.plan();
    const bool narrow = type() == ComputeType::kBF16 || plan.is_f16;
    return narrow && plan.panel != 0 ? kNarrowColumns : MatrixPlan::kChunkColumns;
  }
  struct Columns {
    int64_t first = 0;  // a multiple of the step
    int64_t count = 0;  // the step, or less at the end
  };

  // What a product does to its sums.
  struct SumsForm {
    bool accumulate = false;  // adds to what is there
    bool narrow = false;      // rounds them to BF16
  };
  // sums [computed rows, columns.count] = low_rank B^T for these columns. REQUIRES: narrow only for
  // BF16.
  absl::Status Expand(Kernels::Impl& kernels, int64_t rows, const std::byte* low_rank,
                      const Columns& columns, const SumsForm& form, void* sums) const;
  // The same by our own loops, to rows that lie apart. REQUIRES: IsSmall(kernels, rows).
  struct SumsPlace {
    void* data = nullptr;
    int64_t stride = 0;  // elements from row to row
  };
  void ExpandSmall(const Kernels::Impl& kernels, int64_t rows, const std::byte* low_rank,
                   const Columns& columns, const SumsForm& form, const SumsPlace& sums) const;

 private:
  static constexpr int64_t kNarrowColumns = 512;

  using FactorA = std::variant<PackedMatrix, EmbeddingTable>;

  Impl(const PairShape& shape, int64_t shrink_rows, FactorA shrink, PackedMatrix expand)
      : shape_(shape),
        shrink_rows_(shrink_rows),
        shrink_(std::move(shrink)),
        expand_(std::move(expand)) {}

  static absl::StatusOr<std::unique_ptr<const Impl>> Finish(Kernels::Impl& kernels,
                                                            const MatrixPlan& expand_plan,
                                                            const MatrixView& a,
                                                            const MatrixView& b, FactorA shrink);

  const PackedMatrix& matrix_a() const { return std::get<PackedMatrix>(shrink_); }
  MatmulShape ShrinkShape(int64_t rows) const;
  MatmulShape ExpandShape(int64_t rows, int64_t columns, const SumsForm& sums) const;
  // wide [rows, shrink.n] = input A^T.
  absl::Status MultiplyA(Kernels::Impl& kernels, int64_t rows, const void* input,
                         float* wide) const;
  // low_rank [rows, expand.k] = factor * the first `rank` columns of wide [rows, shrink.n], then
  // zeros. The two may be the same memory.
  void Scale(int64_t rows, const float* wide, double factor, float* low_rank) const;
  // The same rounded to BF16; `wide` is lost.
  void ScaleToBF16(int64_t rows, float* wide, double factor, std::byte* low_rank) const;
  absl::Status Prepare(Kernels::Impl& kernels) const;

  const PairShape shape_;
  const int64_t shrink_rows_;  // of one call
  const FactorA shrink_;
  const PackedMatrix expand_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_PAIR_IMPL_H_
