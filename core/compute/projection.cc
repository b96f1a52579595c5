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

using Terms = std::span<const ProjectionTerm>;

// Rows of one target that one thread computes in one go.
struct Block {
  const ProjectionTarget* target;
  Terms terms;
  int64_t first_row;
  int64_t rows;
};

// Few rows: blocks that leave some for other threads. Many: blocks that use the factors, which come
// from further away than the rows, as often as the cache allows, which holds more rows of BF16.
// Blocks that our own loops take are as fast with 16 rows as with more. Depends on the request
// alone, so that results do not depend on the number of threads.
int64_t BlockRows(const Kernels::Impl& kernels, Terms terms, int64_t rows, int64_t bytes_per_row) {
  constexpr int64_t kLeast = 16;
  const auto is_own = [&kernels](const ProjectionTerm& term) {
    return term.pair->impl().IsSmall(kernels, kLeast);
  };
  const bool narrow = !terms.empty() && terms[0].pair->type() == ComputeType::kBF16;
  int64_t block = rows <= 32 || std::ranges::all_of(terms, is_own) ? kLeast
                  : rows <= 128 || !narrow                         ? 32
                                                                   : kMaxBlockRows;
  while (block > 1 && block * bytes_per_row > kScratchBytes) block /= 2;
  return block;
}

int64_t ScratchBytesPerRow(int64_t input_cols, const ProjectionTarget& target, Terms terms) {
  int64_t elements = input_cols + std::min(target.output.cols, MatrixPlan::kChunkColumns);
  for (const ProjectionTerm& term : terms) elements += term.pair->shape().rank;
  return elements * static_cast<int64_t>(sizeof(float));
}

// Calls body(Block) for every block of the request.
template <typename Body>
void ForEachBlock(const Kernels::Impl& kernels, int64_t input_cols,
                  std::span<const ProjectionTarget> targets, Body body) {
  constexpr int64_t kMinSplit = 16;  // shorter rests are padded to a bucket, longer ones are split
  for (const ProjectionTarget& target : targets) {
    const std::span<const ProjectionSegment> segments = target.segments;
    int64_t row = 0;
    for (size_t next = 0; next < segments.size();) {
      const Terms terms = segments[next].terms;
      int64_t end = row;
      while (next < segments.size() && std::ranges::equal(segments[next].terms, terms)) {
        end += segments[next++].rows;
      }
      int64_t block_rows =
          BlockRows(kernels, terms, end - row, ScratchBytesPerRow(input_cols, target, terms));
      while (row < end) {
        const int64_t left = end - row;
        while (block_rows > left && block_rows > kMinSplit) block_rows /= 2;
        const int64_t rows = std::min(block_rows, left);
        body(Block{&target, terms, row, rows});
        row += rows;
      }
    }
  }
}

// In the calling thread's scratch.
std::span<const Block> SplitIntoBlocks(const Kernels::Impl& kernels, int64_t input_cols,
                                       std::span<const ProjectionTarget> targets) {
  int64_t count = 0;
  ForEachBlock(kernels, input_cols, targets, [&count](const Block&) { ++count; });
  auto* blocks = Scratch::OfThisThread().Get<Block>(Scratch::kBlocks, count);
  Block* next = blocks;
  ForEachBlock(kernels, input_cols, targets, [&next](const Block& block) { *next++ = block; });
  return {blocks, next};
}

// What a block takes on one thread, roughly.
double Microseconds(const Block& block) {
  constexpr double kBytes = 40e3;  // a microsecond, of what is partly in the second cache
  constexpr double kFlops = 180e3;
  constexpr double kFlopsBF16 = 600e3;
  double bytes = static_cast<double>(block.rows * block.target->output.row_bytes());
  double sum = 0;
  for (const ProjectionTerm& term : block.terms) {
    const PackedPair& pair = *term.pair;
    const bool narrow = pair.type() == ComputeType::kBF16;
    const int64_t columns = pair.shape().out_features +  // of an embedding's A few are read
                            (pair.is_embedding() ? 0 : pair.shape().in_features);
    const auto elements = static_cast<double>(pair.shape().rank * columns);
    bytes += elements * static_cast<double>(ElementBytes(pair.type()));
    sum += 2 * elements * static_cast<double>(block.rows) / (narrow ? kFlopsBF16 : kFlops);
  }
  return sum + bytes / kBytes;
}

// Whether other threads are worth what waking them up costs, and that rows and factors are then in
// several caches: 64 rows of F32 are faster on one thread, 64 adapters on two.
bool IsWorthSharing(std::span<const Block> blocks) {
  constexpr double kWorthSharing = 200;
  double sum = 0;
  for (const Block& block : blocks) {
    sum += Microseconds(block);
    if (sum > kWorthSharing) return true;
  }
  return false;
}

void CopyBase(const std::optional<MatrixView>& base, const MutableMatrixView& output) {
  if (output.bytes() == 0) return;  // its data may be null, which memset and memcpy must not get
  if (!base.has_value()) {
    std::memset(output.data, 0, output.bytes());
  } else if (base->dtype == output.dtype) {
    if (base->data != output.data) std::memcpy(output.data, base->data, output.bytes());
  } else {
    BlockSums sums(output, 0, output.cols, output.rows, BlockSums::Type::kF32);
    sums.Start(*base);
    sums.Finish();
  }
}

int64_t LowRankBytes(const ProjectionTerm& term, int64_t computed_rows) {
  return RoundUp(computed_rows * term.pair->impl().low_rank_bytes(),
                 static_cast<int64_t>(kBufferAlignment));
}

// Low-rank rows of every term, one after the other, each in its LowRankBytes.
absl::StatusOr<const std::byte*> ShrinkAll(Kernels::Impl& kernels, const ProjectionInput& input,
                                           const Block& block, int64_t computed_rows) {
  const Terms terms = block.terms;
  int64_t bytes = 0;
  for (const ProjectionTerm& term : terms) bytes += LowRankBytes(term, computed_rows);
  auto* low_rank = Scratch::OfThisThread().Get<std::byte>(Scratch::kLowRank, bytes);
  std::byte* next = low_rank;
  if (const auto* ids = std::get_if<TokenIds>(&input)) {
    const TokenIds of_block = ids->subspan(block.first_row, block.rows);
    for (const ProjectionTerm& term : terms) {
      term.pair->impl().Lookup(kernels, of_block, term.factor, next);
      next += LowRankBytes(term, computed_rows);
    }
    return low_rank;
  }
  BlockInput rows(std::get<MatrixView>(input).Rows(block.first_row, block.rows), computed_rows);
  for (const ProjectionTerm& term : terms) {
    const PackedPair::Impl& pair = term.pair->impl();
    RETURN_IF_ERROR(pair.Shrink(kernels, block.rows, rows.As(pair.type()), term.factor, next));
    next += LowRankBytes(term, computed_rows);
  }
  return low_rank;
}

// Whether one product is all that an output consists of, and its kernel rounds it.
bool IsRoundedByKernel(const Block& block) {
  const Terms terms = block.terms;
  if (terms.size() != 1 || block.target->base_output.has_value()) return false;
  const PackedPair::Impl& pair = terms[0].pair->impl();
  return terms[0].bias == nullptr && block.target->output.dtype == DType::kBF16 &&
         pair.type() == ComputeType::kBF16;
}

absl::Status ExpandAll(Kernels::Impl& kernels, const Block& block, const std::byte* low_rank,
                       int64_t computed_rows, BlockSums::Type type,
                       const PackedPair::Impl::Columns& columns) {
  BlockSums sums(block.target->output.Rows(block.first_row, block.rows), columns.first,
                 columns.count, computed_rows, type);
  const std::optional<MatrixView>& base = block.target->base_output;
  if (base.has_value()) sums.Start(base->Rows(block.first_row, block.rows));
  bool accumulate = base.has_value();
  for (const ProjectionTerm& term : block.terms) {
    RETURN_IF_ERROR(term.pair->impl().Expand(
        kernels, block.rows, low_rank, columns,
        {.accumulate = accumulate, .narrow = type == BlockSums::Type::kOutput}, sums.data()));
    accumulate = true;
    low_rank += LowRankBytes(term, computed_rows);
  }
  for (const ProjectionTerm& term : block.terms) {
    if (term.bias != nullptr) sums.AddBias(term.bias, term.factor);
    if (term.dora != nullptr) sums.Rescale(*term.dora);
  }
  sums.Finish();
  return absl::OkStatus();
}

absl::Status RunBlock(Kernels::Impl& kernels, const ProjectionInput& input, const Block& block) {
  const Terms terms = block.terms;
  if (terms.empty()) {
    std::optional<MatrixView> base = block.target->base_output;
    if (base.has_value()) base = base->Rows(block.first_row, block.rows);
    CopyBase(base, block.target->output.Rows(block.first_row, block.rows));
    return absl::OkStatus();
  }
  int64_t computed_rows = 0;
  int64_t step = 0;
  for (const ProjectionTerm& term : terms) {
    const PackedPair::Impl& pair = term.pair->impl();
    computed_rows = std::max(computed_rows, pair.ComputedRows(kernels, block.rows));
    step = std::max(step, pair.column_step());
  }
  ASSIGN_OR_RETURN(const std::byte* low_rank, ShrinkAll(kernels, input, block, computed_rows));
  const int64_t columns = block.target->output.cols;
  const bool rounded = IsRoundedByKernel(block);
  if (rounded && terms[0].pair->impl().IsSmall(kernels, block.rows)) {
    const MutableMatrixView output = block.target->output.Rows(block.first_row, block.rows);
    terms[0].pair->impl().ExpandSmall(kernels, block.rows, low_rank, {0, columns}, {.narrow = true},
                                      {output.data, columns});
    return absl::OkStatus();
  }
  const auto type = rounded ? BlockSums::Type::kOutput : BlockSums::Type::kF32;
  for (int64_t first = 0; first < columns; first += step) {
    RETURN_IF_ERROR(ExpandAll(kernels, block, low_rank, computed_rows, type,
                              {first, std::min(step, columns - first)}));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ApplyProjection(const Kernels& kernels, ThreadPool& pool, const ProjectionInput& input,
                             std::span<const ProjectionTarget> targets,
                             const Cancellation& cancellation) {
  const auto* rows = std::get_if<MatrixView>(&input);
  const std::span<const Block> blocks =
      SplitIntoBlocks(kernels.impl(), rows == nullptr ? 0 : rows->cols, targets);
  const auto run = [&](int64_t i) { return RunBlock(kernels.impl(), input, blocks[i]); };
  const auto count = static_cast<int64_t>(blocks.size());
  if (IsWorthSharing(blocks)) return ParallelFor(pool, count, cancellation, run);
  return RunInTurn(count, cancellation, run);
}

}  // namespace adapterd
