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

  static PairPlan For(const Kernels::Impl& kernels, const PairShape& shape, ComputeType type);
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

  // low_rank = factor * input A^T. `rows` is a bucket; input is [rows, in_features] of type().
  // REQUIRES: !is_embedding().
  absl::Status Shrink(Kernels::Impl& kernels, int64_t rows, const void* input, double factor,
                      std::byte* low_rank) const;
  // low_rank = factor * A[:, ids]^T, with zeros up to `rows`. REQUIRES: is_embedding().
  void Lookup(int64_t rows, std::span<const int64_t> ids, double factor, std::byte* low_rank) const;

  // Columns of the output are computed in chunks, the same for all pairs of one out_features.
  std::span<const PackedMatrix::Chunk> chunks() const { return expand_.chunks(); }

  // sums [rows, chunk.columns] = low_rank B^T for the chunk's columns, or += to accumulate.
  absl::Status Expand(Kernels::Impl& kernels, int64_t rows, const std::byte* low_rank,
                      const PackedMatrix::Chunk& chunk, bool accumulate, float* sums) const;

 private:
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
  MatmulShape ExpandShape(int64_t rows, const PackedMatrix::Chunk& chunk, bool accumulate) const;
  // low_rank [rows, expand.k] = factor * the first `rank` columns of wide [rows, shrink.n], then
  // zeros. The two may be the same memory.
  void Scale(int64_t rows, const float* wide, double factor, float* low_rank) const;
  absl::Status Prepare(Kernels::Impl& kernels) const;

  const PairShape shape_;
  const int64_t shrink_rows_;  // of one call
  const FactorA shrink_;
  const PackedMatrix expand_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_PAIR_IMPL_H_
