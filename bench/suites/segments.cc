// A batch in which every row has an adapter of its own.
#include <fmt/format.h>

#include "bench/copy.h"
#include "bench/data.h"
#include "bench/projection_case.h"
#include "bench/suite.h"
#include "core/base/parallel.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr ProjectionShape kShape{DType::kBF16, 64, 4096, 16};
constexpr Bars kBars{1.5, {}};
constexpr MeasureOptions kFull{absl::Seconds(5)};
constexpr MeasureOptions kQuick{absl::Milliseconds(600)};

}  // namespace

absl::Status RunSegmentsSuite(SuiteContext& context) {
  context.report.Begin("segments", fmt::format("{} threads each, nothing pinned; as many adapters "
                                               "as rows, each in memory of its own",
                                               context.threads));
  const Kernels kernels;
  ThreadPool pool("bench", context.threads, PrepareComputeThread);
  ASSIGN_OR_RETURN(const auto ours, ProjectionCase::Create(kernels, pool, kShape, kShape.rows,
                                                           AdapterUse::kOneEachRow));
  const int64_t bytes = kShape.rows * ours->work(/*cold=*/false).read_bytes;
  const OutputMatrix factors(kShape.dtype, 1, bytes / FloatBytes(kShape.dtype));
  const auto read = [&] {
    return ParallelFor(pool, kShape.rows, Cancellation(), [&](int64_t i) {
      const int64_t share = bytes / kShape.rows;
      ReadOnly(factors.read().data + i * share, share);
      return absl::OkStatus();
    });
  };
  ASSIGN_OR_RETURN(const Comparison comparison,
                   MeasureAlternating(
                       context.quick ? kQuick : kFull, [&] { return ours->Run(); }, read));
  context.report.Add({"segments", "projection", kShape.Describe(), LowerName(kShape.dtype),
                      fmt::format("reading {} MB of factors once", bytes / 1000000), comparison,
                      kBars});
  return absl::OkStatus();
}

}  // namespace adapterd::bench
