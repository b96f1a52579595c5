#include "core/compute/projection.h"

#include <algorithm>
#include <cstring>

#include "core/base/checked_math.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"
#include "core/compute/block_rows.h"
#include "core/compute/pair_impl.h"
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

int64_t ScratchBytesPerRow(int64_t input_cols, const ProjectionTarget& target,
                           const ProjectionSegment& segment) {
  int64_t elements = input_cols + std::min(target.output.cols, MatrixPlan::kChunkColumns);
  for (const ProjectionTerm& term : segment.terms) elements += term.pair->shape().rank;
  return elements * static_cast<int64_t>(sizeof(float));
}

std::vector<Block> SplitIntoBlocks(int64_t input_cols, std::span<const ProjectionTarget> targets) {
  constexpr int64_t kMinSplit = 16;  // shorter rests are padded to a bucket, longer ones are split
  std::vector<Block> blocks;
  for (const ProjectionTarget& target : targets) {
    int64_t row = 0;
    for (const ProjectionSegment& segment : target.segments) {
      int64_t block_rows = BlockRows(segment.rows, ScratchBytesPerRow(input_cols, target, segment));
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
absl::StatusOr<std::byte*> ShrinkAll(Kernels::Impl& kernels, const ProjectionInput& input,
                                     const Block& block, std::vector<int64_t>& offsets) {
  const std::span<const ProjectionTerm> terms = block.segment->terms;
  const int64_t bucket = RowBucket(block.rows);
  int64_t bytes = 0;
  for (const ProjectionTerm& term : terms) {
    offsets.push_back(bytes);
    bytes += RoundUp(bucket * term.pair->impl().low_rank_bytes(),
                     static_cast<int64_t>(kBufferAlignment));
  }
  auto* low_rank = Scratch::OfThisThread().Get<std::byte>(Scratch::kLowRank, bytes);
  if (const auto* ids = std::get_if<TokenIds>(&input)) {
    const TokenIds of_block = ids->subspan(block.first_row, block.rows);
    for (size_t i = 0; i < terms.size(); ++i) {
      terms[i].pair->impl().Lookup(bucket, of_block, terms[i].factor, low_rank + offsets[i]);
    }
    return low_rank;
  }
  BlockInput rows(std::get<MatrixView>(input).Rows(block.first_row, block.rows));
  for (size_t i = 0; i < terms.size(); ++i) {
    const PackedPair::Impl& pair = terms[i].pair->impl();
    RETURN_IF_ERROR(
        pair.Shrink(kernels, bucket, rows.As(pair.type()), terms[i].factor, low_rank + offsets[i]));
  }
  return low_rank;
}

absl::Status RunBlock(Kernels::Impl& kernels, const ProjectionInput& input, const Block& block) {
  const MutableMatrixView output = block.target->output.Rows(block.first_row, block.rows);
  std::optional<MatrixView> base = block.target->base_output;
  if (base.has_value()) base = base->Rows(block.first_row, block.rows);
  const std::span<const ProjectionTerm> terms = block.segment->terms;
  if (terms.empty()) {
    CopyBase(base, output);
    return absl::OkStatus();
  }
  std::vector<int64_t> offsets;
  ASSIGN_OR_RETURN(const std::byte* low_rank, ShrinkAll(kernels, input, block, offsets));
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
    for (const ProjectionTerm& term : terms) {
      if (term.bias != nullptr) sums.AddBias(term.bias, term.factor);
      if (term.dora != nullptr) sums.Rescale(*term.dora);
    }
    sums.Finish();
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ApplyProjection(const Kernels& kernels, ThreadPool& pool, const ProjectionInput& input,
                             std::span<const ProjectionTarget> targets,
                             const Cancellation& cancellation) {
  const auto* rows = std::get_if<MatrixView>(&input);
  const std::vector<Block> blocks = SplitIntoBlocks(rows == nullptr ? 0 : rows->cols, targets);
  return ParallelFor(pool, static_cast<int64_t>(blocks.size()), cancellation,
                     [&](int64_t i) { return RunBlock(kernels.impl(), input, blocks[i]); });
}

}  // namespace adapterd
