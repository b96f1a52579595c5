#include "core/compose/mix.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/base/checked_math.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"
#include "core/compose/magnitude_cut.h"

namespace adapterd {
namespace {

// One matrix cut into blocks of rows.
struct Blocks {
  int64_t rows = 0;
  int64_t cols = 0;

  int64_t count() const { return CeilDiv(rows, kMixRows); }
  int64_t first(int64_t block) const { return block * kMixRows; }
  int64_t rows_of(int64_t block) const { return std::min(kMixRows, rows - first(block)); }
  int64_t elements_of(int64_t block) const { return rows_of(block) * cols; }
};

// Prunes an input's elements, block by block.
class Pruner {
 public:
  static absl::StatusOr<Pruner> Create(ThreadPool& pool, const MixInput& input, const MixRule& rule,
                                       const Blocks& blocks, const Cancellation& cancellation) {
    Pruner pruner(input, rule.density >= 1 ? Pruning::kNone : rule.pruning, rule.density);
    if (pruner.pruning_ == Pruning::kMagnitude) {
      RETURN_IF_ERROR(pruner.FindCut(pool, blocks, cancellation));
    }
    return pruner;
  }

  // REQUIRES: the elements of this block.
  void Prune(const Blocks& blocks, int64_t block, float* values) const {
    const int64_t count = blocks.elements_of(block);
    if (pruning_ == Pruning::kMagnitude) {
      int64_t equal = equal_left_.empty() ? count : equal_left_[block];
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = MagnitudeBits(values[i]);
        const bool keep = bits > cut_.bits || (bits == cut_.bits && equal-- > 0);
        if (!keep) values[i] = 0;
      }
    } else if (pruning_ == Pruning::kRandom) {
      RandomStream random = input_.random;
      random.Skip(static_cast<uint64_t>(blocks.first(block) * blocks.cols));
      for (int64_t i = 0; i < count; ++i) {
        const bool keep = static_cast<double>(random.Next() >> 11) * 0x1p-53 < density_;
        values[i] = keep ? static_cast<float>(values[i] / density_) : 0;
      }
    }
  }

 private:
  Pruner(const MixInput& input, Pruning pruning, double density)
      : input_(input), pruning_(pruning), density_(density) {}

  absl::Status ForEachBlock(ThreadPool& pool, const Blocks& blocks,
                            const Cancellation& cancellation,
                            absl::FunctionRef<void(int64_t, const float*)> take) const {
    return ParallelFor(pool, blocks.count(), cancellation, [&](int64_t block) -> absl::Status {
      std::vector<float> values(blocks.elements_of(block));
      RETURN_IF_ERROR(input_.rows->Read(blocks.first(block), blocks.rows_of(block), values.data()));
      take(block, values.data());
      return absl::OkStatus();
    });
  }

  absl::Status FindCut(ThreadPool& pool, const Blocks& blocks, const Cancellation& cancellation) {
    const auto elements = static_cast<double>(blocks.rows * blocks.cols);
    const auto for_each = [&](absl::FunctionRef<void(const float*, int64_t)> take) {
      return ForEachBlock(pool, blocks, cancellation, [&](int64_t block, const float* values) {
        take(values, blocks.elements_of(block));
      });
    };
    ASSIGN_OR_RETURN(cut_, FindMagnitudeCut(for_each, static_cast<int64_t>(density_ * elements)));
    if (!cut_.splits_ties) return absl::OkStatus();
    // Which of the equal ones come first: count them in each block, then hand out what is kept.
    equal_left_.resize(blocks.count());
    RETURN_IF_ERROR(
        ForEachBlock(pool, blocks, cancellation, [&](int64_t block, const float* values) {
          equal_left_[block] =
              std::count_if(values, values + blocks.elements_of(block),
                            [&](float value) { return MagnitudeBits(value) == cut_.bits; });
        }));
    int64_t left = cut_.equal;
    for (int64_t& equal : equal_left_) {
      equal = std::min(equal, left);
      left -= equal;
    }
    return absl::OkStatus();
  }

  const MixInput& input_;
  Pruning pruning_;
  double density_;
  MagnitudeCut cut_;
  std::vector<int64_t> equal_left_;  // of each block; empty: all of them are kept
};

// One element, of all inputs' pruned values, which lie `stride` apart.
float MixElement(std::span<const MixInput> inputs, SignElection election, const float* values,
                 int64_t stride) {
  double sum = 0;
  if (election == SignElection::kNone) {
    for (const MixInput& input : inputs) {
      sum += input.weight * *values;
      values += stride;
    }
    return static_cast<float>(sum);
  }
  double vote = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const double value = values[static_cast<int64_t>(i) * stride];
    vote += election == SignElection::kTotal ? value : (value > 0) - (value < 0);
  }
  int64_t agreeing = 0;
  for (const MixInput& input : inputs) {
    if (vote >= 0 ? *values > 0 : *values < 0) {
      sum += input.weight * *values;
      ++agreeing;
    }
    values += stride;
  }
  return static_cast<float>(sum / static_cast<double>(std::max<int64_t>(agreeing, 1)));
}

}  // namespace

absl::Status Mix(ThreadPool& pool, std::span<const MixInput> inputs, const MixRule& rule,
                 int64_t rows, int64_t cols, float* mixed, const Cancellation& cancellation) {
  const Blocks blocks{rows, cols};
  std::vector<Pruner> pruners;
  for (const MixInput& input : inputs) {
    ASSIGN_OR_RETURN(Pruner pruner, Pruner::Create(pool, input, rule, blocks, cancellation));
    pruners.push_back(std::move(pruner));
  }
  return ParallelFor(pool, blocks.count(), cancellation, [&](int64_t block) -> absl::Status {
    const int64_t count = blocks.elements_of(block);
    std::vector<float> values(static_cast<int64_t>(inputs.size()) * count);
    for (size_t i = 0; i < inputs.size(); ++i) {
      float* own = values.data() + static_cast<int64_t>(i) * count;
      RETURN_IF_ERROR(inputs[i].rows->Read(blocks.first(block), blocks.rows_of(block), own));
      pruners[i].Prune(blocks, block, own);
    }
    float* out = mixed + blocks.first(block) * cols;
    for (int64_t i = 0; i < count; ++i) {
      out[i] = MixElement(inputs, rule.election, values.data() + i, count);
    }
    return absl::OkStatus();
  });
}

}  // namespace adapterd
