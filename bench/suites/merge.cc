// MergeWeight in process, the compute stage of a merge; then whole checkpoints.
#include "core/compute/merge.h"

#include <fmt/format.h>

#include "bench/copy.h"
#include "bench/data.h"
#include "bench/suites/merge.h"
#include "bench/verify.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int64_t kFeatures = 4096;
constexpr int64_t kRank = 16;
constexpr float kTrainedWeight = 0.05f;
constexpr Bars kBars{2, 1.4};
constexpr MeasureOptions kFull{absl::Seconds(5), 31};
constexpr MeasureOptions kQuick{absl::Seconds(1), 11};

}  // namespace

absl::Status RunMergeSuite(SuiteContext& context) {
  context.report.Begin("merge", fmt::format("{} threads each, out of place, statistics on, buffers "
                                            "mapped beforehand",
                                            context.threads));
  const Kernels kernels;
  ThreadPool pool("bench", context.threads, PrepareComputeThread);
  const Factors factors(DType::kBF16, kFeatures, kRank);
  const Tensor weight = RandomMatrix(DType::kBF16, kFeatures, kFeatures, kTrainedWeight, 3);
  OutputMatrix merged(DType::kBF16, kFeatures, kFeatures);
  const MergeTerm term{factors.a_view(), factors.b_view(), factors.scale};

  const auto merge = [&] {
    return MergeWeight(kernels, pool, AsMatrix(weight), {&term, 1}, MergeOptions(), merged.view(),
                       Cancellation())
        .status();
  };
  const auto copy = [&] {
    return ParallelCopy(pool, weight.bytes().data(), merged.view().data, AsMatrix(weight).bytes());
  };
  RETURN_IF_ERROR(merge());
  RETURN_IF_ERROR(VerifyMerge(AsMatrix(weight), factors, merged.read()));
  ASSIGN_OR_RETURN(const Comparison comparison,
                   MeasureAlternating(context.quick ? kQuick : kFull, merge, copy));
  const int threads = CopyThreads(pool, AsMatrix(weight).bytes());
  context.report.Add({"merge", "MergeWeight", fmt::format("{0}x{0} r={1}", kFeatures, kRank),
                      "bf16", fmt::format("memcpy of W, {} threads", threads), comparison, kBars});
  RETURN_IF_ERROR(
      MeasureBaseMerge(context, {kernels, pool, weight, factors}, context.quick ? kQuick : kFull));
  return RunCheckpointMerges(context);
}

}  // namespace adapterd::bench
