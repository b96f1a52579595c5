#include "service/short_work.h"

#include <algorithm>
#include <vector>

#include "core/base/status_macros.h"
#include "core/base/thread_pool.h"
#include "core/compute/projection.h"
#include "service/data_plane.h"

namespace adapterd {
namespace {

constexpr int64_t kRows = 16;
constexpr int64_t kFeatures = 2048;
constexpr int64_t kRank = 16;
constexpr int kRepetitions = 10;
constexpr double kFlops = 2.0 * kRows * kRank * (kFeatures + kFeatures);

MatrixView AsView(const std::vector<float>& values, int64_t rows, int64_t cols) {
  return {DType::kF32, rows, cols, reinterpret_cast<const std::byte*>(values.data())};
}

}  // namespace

absl::StatusOr<int64_t> MeasureShortFlops(const Kernels& kernels) {
  const std::vector<float> factor(kRank * kFeatures, 0.5f);
  const std::vector<float> input(kRows * kFeatures, 0.25f);
  std::vector<float> output(kRows * kFeatures);
  ASSIGN_OR_RETURN(const auto pair,
                   PackedPair::Pack(kernels, AsView(factor, kRank, kFeatures),
                                    AsView(factor, kFeatures, kRank), ComputeType::kF32));
  ProjectionTarget target;
  target.segments = {{kRows, {{pair.get()}}}};
  target.output = {DType::kF32, kRows, kFeatures, reinterpret_cast<std::byte*>(output.data())};
  ThreadPool nobody("none", 0);
  absl::Duration best = absl::InfiniteDuration();
  for (int i = 0; i < kRepetitions; ++i) {
    const absl::Time start = absl::Now();
    RETURN_IF_ERROR(ApplyProjection(kernels, nobody, AsView(input, kRows, kFeatures), {&target, 1},
                                    Cancellation()));
    best = std::min(best, absl::Now() - start);
  }
  const double flops = kFlops * absl::FDivDuration(kShortWork, best);
  return std::clamp(static_cast<int64_t>(flops), kMinShortFlops, kMaxShortFlops);
}

}  // namespace adapterd
