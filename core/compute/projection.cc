#include "core/compute/projection.h"

#include <algorithm>
#include <cstring>

#include "core/base/checked_math.h"
#include "core/base/status_macros.h"
#include "core/compute/pair_impl.h"
#include "core/base/parallel.h"
#include "core/compute/scratch.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// Rows of one target that one thread computes in one go.
struct Block {
  const ProjectionTarget* target;
  const ProjectionSegment* segment;
  int64_t first_row;
  int64_t rows;
};

// Few rows: blocks that leave some for other threads. Many: blocks that use the factors, which come
// from further away than the rows, as often as the cache allows. Depends on the request alone, so
// that results do not depend on the number of threads.
int64_t BlockRows(int64_t rows, int64_t bytes_per_row) {
  int64_t block = rows <= 64 ? 16 : rows <= 128 ? 32 : kMaxBlockRows;
  while (block > 1 && block * bytes_per_row > kScratchBytes) block /= 2;
  return block;
}

int64_t ScratchBytesPerRow(int64_t in_features, const ProjectionTarget& target,
                           const ProjectionSegment& segment) {
  int64_t elements = in_features + std::min(target.output.cols, MatrixPlan::kChunkColumns);
  for (const ProjectionTerm& term : segment.terms) elements += term.pair->shape().rank;
  return elements * static_cast<int64_t>(sizeof(float));
}

std::vector<Block> SplitIntoBlocks(int64_t in_features, std::span<const ProjectionTarget> targets) {
  constexpr int64_t kMinSplit = 16;  // shorter rests are padded to a bucket, longer ones are split
  std::vector<Block> blocks;
  for (const ProjectionTarget& target : targets) {
    int64_t row = 0;
    for (const ProjectionSegment& segment : target.segments) {
      int64_t block_rows =
          BlockRows(segment.rows, ScratchBytesPerRow(in_features, target, segment));
      for (const int64_t end = row + segment.rows; row < end;) {
        const int64_t left = end - row;
        while (block_rows > left && block_rows > kMinSplit) block_rows /= 2;
        const int64_t rows = std::min(block_rows, left);
        blocks.push_back({&target, &segment, row, rows});
        row += rows;
      }
    }
  }
  return blocks;
}

bool IsAligned(const std::byte* data, int64_t alignment) {
  return reinterpret_cast<uintptr_t>(data) % alignment == 0;
}

// The rows of a block as kernels take them: of the type they multiply in, aligned, and as many as a
// bucket has, with zeros after the last. Made when first asked for.
class BlockInput {
 public:
  explicit BlockInput(const MatrixView& rows) : rows_(rows) {}

  const void* As(ComputeType type) { return type == ComputeType::kBF16 ? AsBF16() : AsF32(); }

 private:
  bool IsUsable(DType dtype) const {
    return rows_.dtype == dtype && rows_.rows == RowBucket(rows_.rows) &&
           IsAligned(rows_.data, FloatBytes(dtype));
  }

  const void* AsF32() {
    if (f32_ != nullptr) return f32_;
    if (IsUsable(DType::kF32)) return f32_ = rows_.data;
    const int64_t padded = RowBucket(rows_.rows) * rows_.cols;
    auto* made = Scratch::OfThisThread().Get<float>(Scratch::kInputF32, padded);
    const int64_t count = rows_.rows * rows_.cols;
    ConvertToF32(rows_.dtype, rows_.data, made, count);
    std::fill(made + count, made + padded, 0.0f);
    return f32_ = made;
  }

  const void* AsBF16() {
    if (bf16_ != nullptr) return bf16_;
    if (IsUsable(DType::kBF16)) return bf16_ = rows_.data;
    const int64_t padded = RowBucket(rows_.rows) * rows_.row_bytes();
    auto* made = Scratch::OfThisThread().Get<std::byte>(Scratch::kInputBF16, padded);
    std::memcpy(made, rows_.data, rows_.bytes());
    std::memset(made + rows_.bytes(), 0, padded - rows_.bytes());
    return bf16_ = made;
  }

  const MatrixView rows_;
  const void* f32_ = nullptr;
  const void* bf16_ = nullptr;
};

// Columns [first, first + columns) of a block's output while they are summed: in scratch, or in the
// output itself when that has the form that kernels write.
class BlockSums {
 public:
  BlockSums(const MutableMatrixView& output, int64_t first, int64_t columns)
      : output_(output), first_(first), columns_(columns) {
    const int64_t rows = RowBucket(output.rows);
    in_place_ = output.dtype == DType::kF32 && columns == output.cols && rows == output.rows &&
                IsAligned(output.data, alignof(float));
    data_ = in_place_ ? reinterpret_cast<float*>(output.data)
                      : Scratch::OfThisThread().Get<float>(Scratch::kSums, rows * columns);
  }

  float* data() { return data_; }

  void Start(const MatrixView& base) {
    if (in_place_ && base.data == output_.data) return;
    if (columns_ == base.cols) {
      ConvertToF32(base.dtype, base.data, data_, base.rows * columns_);
    } else {
      for (int64_t row = 0; row < base.rows; ++row) {
        ConvertToF32(base.dtype, base.data + Offset(row, base.dtype), data_ + row * columns_,
                     columns_);
      }
    }
    std::fill(data_ + base.rows * columns_, data_ + RowBucket(base.rows) * columns_, 0.0f);
  }

  void Finish() {
    if (in_place_) return;
    if (columns_ == output_.cols) {
      ConvertFromF32(data_, output_.dtype, output_.data, output_.rows * columns_);
      return;
    }
    for (int64_t row = 0; row < output_.rows; ++row) {
      ConvertFromF32(data_ + row * columns_, output_.dtype,
                     output_.data + Offset(row, output_.dtype), columns_);
    }
  }

 private:
  // Bytes from a matrix's start to this row's first column of the chunk.
  int64_t Offset(int64_t row, DType dtype) const {
    return (row * output_.cols + first_) * FloatBytes(dtype);
  }

  const MutableMatrixView output_;
  const int64_t first_;
  const int64_t columns_;
  bool in_place_;
  float* data_;
};

void CopyBase(const std::optional<MatrixView>& base, const MutableMatrixView& output) {
  if (output.bytes() == 0) return;  // its data may be null, which memset and memcpy must not get
  if (!base.has_value()) {
    std::memset(output.data, 0, output.bytes());
  } else if (base->dtype == output.dtype) {
    if (base->data != output.data) std::memcpy(output.data, base->data, output.bytes());
  } else {
    BlockSums sums(output, 0, output.cols);
    sums.Start(*base);
    sums.Finish();
  }
}

// Low-rank rows of every term, one after the other, at the offsets that `offsets` returns.
absl::StatusOr<std::byte*> ShrinkAll(Kernels::Impl& kernels, const MatrixView& rows,
                                     std::span<const ProjectionTerm> terms,
                                     std::vector<int64_t>& offsets) {
  const int64_t bucket = RowBucket(rows.rows);
  int64_t bytes = 0;
  for (const ProjectionTerm& term : terms) {
    offsets.push_back(bytes);
    bytes += RoundUp(bucket * term.pair->impl().low_rank_bytes(),
                     static_cast<int64_t>(kBufferAlignment));
  }
  auto* low_rank = Scratch::OfThisThread().Get<std::byte>(Scratch::kLowRank, bytes);
  BlockInput input(rows);
  for (size_t i = 0; i < terms.size(); ++i) {
    const PackedPair::Impl& pair = terms[i].pair->impl();
    RETURN_IF_ERROR(pair.Shrink(kernels, bucket, input.As(pair.type()), terms[i].factor,
                                low_rank + offsets[i]));
  }
  return low_rank;
}

absl::Status RunBlock(Kernels::Impl& kernels, const MatrixView& input, const Block& block) {
  const MutableMatrixView output = block.target->output.Rows(block.first_row, block.rows);
  std::optional<MatrixView> base = block.target->base_output;
  if (base.has_value()) base = base->Rows(block.first_row, block.rows);
  const std::span<const ProjectionTerm> terms = block.segment->terms;
  if (terms.empty()) {
    CopyBase(base, output);
    return absl::OkStatus();
  }
  std::vector<int64_t> offsets;
  ASSIGN_OR_RETURN(const std::byte* low_rank,
                   ShrinkAll(kernels, input.Rows(block.first_row, block.rows), terms, offsets));
  const size_t chunks = terms[0].pair->impl().chunks().size();
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const PackedMatrix::Chunk& columns = terms[0].pair->impl().chunks()[chunk];
    BlockSums sums(output, columns.first_column, columns.columns);
    if (base.has_value()) sums.Start(*base);
    for (size_t i = 0; i < terms.size(); ++i) {
      const PackedPair::Impl& pair = terms[i].pair->impl();
      const bool accumulate = base.has_value() || i > 0;
      RETURN_IF_ERROR(pair.Expand(kernels, RowBucket(block.rows), low_rank + offsets[i],
                                  pair.chunks()[chunk], accumulate, sums.data()));
    }
    sums.Finish();
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ApplyProjection(const Kernels& kernels, ThreadPool& pool, const MatrixView& input,
                             std::span<const ProjectionTarget> targets,
                             const Cancellation& cancellation) {
  const std::vector<Block> blocks = SplitIntoBlocks(input.cols, targets);
  return ParallelFor(pool, static_cast<int64_t>(blocks.size()), cancellation,
                     [&](int64_t i) { return RunBlock(kernels.impl(), input, blocks[i]); });
}

}  // namespace adapterd
