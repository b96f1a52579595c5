#include "bench/onednn_variants.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>
#include <utility>

#include "bench/copy.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int64_t kBlockRows[] = {16, 32, 64, 128};
constexpr int64_t kPaddedRanks[] = {16, 32, 48, 64};
constexpr size_t kBlocksTried = 3;  // of one block size, on the whole input
constexpr size_t kVariantsKept = 2;
constexpr int kMaxRuns = 7;
constexpr double kEnoughUs = 1000;  // of runs of one candidate
constexpr double kHopeless = 3;     // times the best one
constexpr double kNever = std::numeric_limits<double>::infinity();

// The fastest of a few runs; of a single one when that is far behind `best_us`.
template <typename Run>
double FastestUs(double best_us, Run run) {
  using Clock = std::chrono::steady_clock;
  double fastest = kNever;
  double total = 0;
  run();  // first touches and code that is not in the caches yet
  for (int i = 0; i < kMaxRuns && (i == 0 || total < kEnoughUs); ++i) {
    const Clock::time_point start = Clock::now();
    run();
    const double us = std::chrono::duration<double, std::micro>(Clock::now() - start).count();
    fastest = std::min(fastest, us);
    total += us;
    if (us > kHopeless * best_us) break;
  }
  return fastest;
}

std::vector<int64_t> PaddedRanks(int64_t rank) {
  std::vector<int64_t> ranks = {rank};
  for (const int64_t padded : kPaddedRanks) {
    if (padded > rank) ranks.push_back(padded);
  }
  return ranks;
}

std::vector<int64_t> BlockSizes(int64_t rows) {
  std::vector<int64_t> sizes = {rows};
  for (const int64_t block : kBlockRows) {
    if (block < rows && rows % block == 0) sizes.push_back(block);
  }
  return sizes;
}

StepShape ShrinkShape(const BlockVariant& block, const Factors& factors) {
  return {block.compute,
          block.rows,
          factors.a_view().cols,
          block.padded_rank,
          block.shrink,
          block.compute,
          static_cast<float>(factors.scale)};
}

StepShape ExpandShape(const BlockVariant& block, const Factors& factors) {
  const DType output = block.converts_output ? DType::kF32 : block.compute;
  return {block.compute, block.rows, block.padded_rank, factors.b_view().rows, block.expand,
          output,        1};
}

struct Timed {
  StepLayout layout = StepLayout::kRows;
  bool converts_output = false;
  double us = kNever;
};

// The fastest layout of one step.
template <typename SetLayout, typename ShapeOf>
Timed FastestLayout(const BlockVariant& block, const MatrixView& weights, const std::byte* source,
                    std::byte* destination, double extra_us, SetLayout set_layout,
                    ShapeOf shape_of) {
  Timed best;
  for (const StepLayout layout : AllStepLayouts()) {
    BlockVariant candidate = block;
    set_layout(candidate, layout);
    const auto step = OneDnnStep::Create(shape_of(candidate), weights);
    if (!step.ok()) continue;
    const double us = extra_us + FastestUs(best.us, [&] { (*step)->Run(source, destination); });
    if (us < best.us) best = {layout, block.converts_output, us};
  }
  return best;
}

// Room for a block's rows at each stage, in the wider type.
struct BlockBuffers {
  BlockBuffers(int64_t rows, int64_t features, int64_t max_rank)
      : wide_input(DType::kF32, rows, features),
        low_rank(DType::kF32, rows, max_rank),
        wide_output(DType::kF32, rows, features),
        output(DType::kF32, rows, features) {}

  OutputMatrix wide_input;
  OutputMatrix low_rank;
  OutputMatrix wide_output;
  OutputMatrix output;
};

// Of a block of so many elements, from BF16 or to it.
double WidenUs(int64_t count, BlockBuffers& buffers) {
  return FastestUs(
      kNever, [&] { Widen(buffers.output.read().data, buffers.wide_input.view().data, count); });
}
double NarrowUs(int64_t count, BlockBuffers& buffers) {
  return FastestUs(
      kNever, [&] { Narrow(buffers.wide_output.read().data, buffers.output.view().data, count); });
}

// One padding and type of a block, with the layouts that are best there.
std::optional<BlockVariant> FindLayouts(BlockVariant block, const Factors& factors,
                                        BlockBuffers& buffers) {
  const DType dtype = factors.a.dtype();
  const int64_t count = block.rows * factors.b_view().rows;
  const std::byte* source = buffers.wide_input.read().data;
  std::byte* low_rank = buffers.low_rank.view().data;
  const Timed shrink = FastestLayout(
      block, factors.a_view(), source, low_rank, 0,
      [](BlockVariant& candidate, StepLayout layout) { candidate.shrink = layout; },
      [&](const BlockVariant& candidate) { return ShrinkShape(candidate, factors); });
  Timed expand;
  for (const bool converts : {false, true}) {
    if (converts ? dtype == DType::kF32 : dtype != block.compute) continue;
    block.converts_output = converts;
    const double extra_us = converts ? NarrowUs(count, buffers) : 0;
    const Timed timed = FastestLayout(
        block, factors.b_view(), low_rank, buffers.wide_output.view().data, extra_us,
        [](BlockVariant& candidate, StepLayout layout) { candidate.expand = layout; },
        [&](const BlockVariant& candidate) { return ExpandShape(candidate, factors); });
    if (timed.us < expand.us) expand = timed;
  }
  if (shrink.us == kNever || expand.us == kNever) return std::nullopt;
  block.shrink = shrink.layout;
  block.expand = expand.layout;
  block.converts_output = expand.converts_output;
  block.us = shrink.us + expand.us;
  if (block.compute != dtype) block.us += WidenUs(block.rows * factors.a_view().cols, buffers);
  return block;
}

}  // namespace

std::string Variant::Describe() const {
  const bool is_f32 = block.compute == DType::kF32;
  return fmt::format("{} {}+{} r{} in {}s x{}{}", is_f32 ? "f32" : "bf16",
                     StepLayoutName(block.shrink), StepLayoutName(block.expand), block.padded_rank,
                     block.rows, threads, block.converts_output ? " conv" : "");
}

// What one thread needs for a block.
class VariantRun::Pipeline {
 public:
  static absl::StatusOr<std::unique_ptr<Pipeline>> Create(const BlockVariant& block,
                                                          const Factors& factors) {
    auto pipeline = std::unique_ptr<Pipeline>(new Pipeline(block, factors));
    ASSIGN_OR_RETURN(pipeline->shrink_,
                     OneDnnStep::Create(ShrinkShape(block, factors), factors.a_view()));
    ASSIGN_OR_RETURN(pipeline->expand_,
                     OneDnnStep::Create(ExpandShape(block, factors), factors.b_view()));
    return pipeline;
  }

  std::unique_ptr<Pipeline> Clone(const Factors& factors) const {
    auto pipeline = std::unique_ptr<Pipeline>(new Pipeline(block_, factors));
    pipeline->shrink_ = shrink_->Clone();
    pipeline->expand_ = expand_->Clone();
    return pipeline;
  }

  void Run(const std::byte* input, std::byte* output) {
    if (wide_input_) {
      const MutableMatrixView wide = wide_input_->view();
      Widen(input, wide.data, wide.rows * wide.cols);
      input = wide.data;
    }
    shrink_->Run(input, low_rank_.view().data);
    expand_->Run(low_rank_.read().data, wide_output_ ? wide_output_->view().data : output);
    if (wide_output_) {
      const MatrixView wide = wide_output_->read();
      Narrow(wide.data, output, wide.rows * wide.cols);
    }
  }

 private:
  Pipeline(const BlockVariant& block, const Factors& factors)
      : block_(block), low_rank_(block.compute, block.rows, block.padded_rank) {
    if (block.compute != factors.a.dtype()) {
      wide_input_.emplace(DType::kF32, block.rows, factors.a_view().cols);
    }
    if (block.converts_output) {
      wide_output_.emplace(DType::kF32, block.rows, factors.b_view().rows);
    }
  }

  const BlockVariant block_;
  std::unique_ptr<OneDnnStep> shrink_;
  std::unique_ptr<OneDnnStep> expand_;
  OutputMatrix low_rank_;
  std::optional<OutputMatrix> wide_input_;
  std::optional<OutputMatrix> wide_output_;
};

VariantRun::VariantRun(ThreadPool& pool, const Variant& variant, const MatrixView& input,
                       const MutableMatrixView& output)
    : pool_(pool), variant_(variant), input_(input), output_(output) {}

VariantRun::~VariantRun() = default;

absl::StatusOr<std::unique_ptr<VariantRun>> VariantRun::Create(ThreadPool& pool,
                                                               const Variant& variant,
                                                               const Factors& factors,
                                                               const MatrixView& input,
                                                               const MutableMatrixView& output) {
  std::unique_ptr<VariantRun> run(new VariantRun(pool, variant, input, output));
  ASSIGN_OR_RETURN(auto first, Pipeline::Create(variant.block, factors));
  for (int i = 1; i < variant.threads; ++i) run->pipelines_.push_back(first->Clone(factors));
  run->pipelines_.push_back(std::move(first));
  return run;
}

absl::Status VariantRun::Run() {
  const int64_t blocks = input_.rows / variant_.block.rows;
  const auto threads = static_cast<int64_t>(pipelines_.size());
  return ParallelFor(pool_, threads, Cancellation(), [&](int64_t thread) {
    const int64_t rows = variant_.block.rows;
    for (int64_t i = blocks * thread / threads; i < blocks * (thread + 1) / threads; ++i) {
      pipelines_[thread]->Run(input_.Rows(i * rows, rows).data, output_.Rows(i * rows, rows).data);
    }
    return absl::OkStatus();
  });
}

const std::vector<BlockVariant>& VariantSearch::BlocksOf(const Factors& factors, int64_t rows) {
  const DType dtype = factors.a.dtype();
  const int64_t rank = factors.a_view().rows;
  const auto [found, is_new] = blocks_.try_emplace(BlockKey(dtype, rank, rows));
  if (!is_new) return found->second;
  const std::vector<int64_t> ranks = PaddedRanks(rank);
  BlockBuffers buffers(rows, factors.a_view().cols, ranks.back());
  for (const DType compute : {dtype, DType::kF32}) {
    for (const int64_t padded : ranks) {
      const auto block = FindLayouts({compute, rows, padded}, factors, buffers);
      if (block) found->second.push_back(*block);
    }
    if (dtype == DType::kF32) break;
  }
  std::ranges::sort(found->second, {}, &BlockVariant::us);
  return found->second;
}

absl::StatusOr<std::vector<std::unique_ptr<VariantRun>>> VariantSearch::Find(
    const Factors& factors, const MatrixView& input, const MutableMatrixView& output) {
  std::vector<std::pair<double, std::unique_ptr<VariantRun>>> timed;
  double best_us = kNever;
  for (const int64_t rows : BlockSizes(input.rows)) {
    const std::vector<BlockVariant>& blocks = BlocksOf(factors, rows);
    for (size_t i = 0; i < std::min(blocks.size(), kBlocksTried); ++i) {
      for (int threads = 1; threads <= pool_.threads() && threads * rows <= input.rows; ++threads) {
        ASSIGN_OR_RETURN(auto run,
                         VariantRun::Create(pool_, {blocks[i], threads}, factors, input, output));
        const double us = FastestUs(best_us, [&] { (void)run->Run(); });
        best_us = std::min(best_us, us);
        timed.emplace_back(us, std::move(run));
      }
    }
  }
  if (timed.empty()) return absl::UnimplementedError("oneDNN has no variant of this projection");
  std::ranges::sort(timed, {}, [](const auto& each) { return each.first; });
  std::vector<std::unique_ptr<VariantRun>> best;
  for (size_t i = 0; i < std::min(timed.size(), kVariantsKept); ++i) {
    best.push_back(std::move(timed[i].second));
  }
  return best;
}

}  // namespace adapterd::bench
