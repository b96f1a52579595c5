// MultiplyBase in process: the base model's part of Forward, in 4 bits beside BF16.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "bench/data.h"
#include "bench/roofline.h"
#include "bench/suite.h"
#include "core/base/status_macros.h"
#include "core/compute/base_product.h"
#include "core/compute/reference.h"

namespace adapterd::bench {
namespace {

constexpr int64_t kFeatures = 4096;
constexpr int64_t kBlock = 64;
constexpr float kTrainedWeight = 0.05f;
// What is read of memory is a quarter; with many rows arithmetic counts, of which there is twice as
// much.
constexpr Bars kOneRowBars{1.3, 1};
constexpr Bars kManyRowsBars{2, 1.5};
constexpr MeasureOptions kFull{absl::Seconds(3), 31};
constexpr MeasureOptions kQuick{absl::Seconds(1), 11};

// Weights that are used in turns, so that each is read from memory as those of a model's many
// layers are.
struct Turns {
  const StoredWeight& Next() { return weights[next++ % weights.size()]; }

  std::vector<StoredWeight> weights;
  size_t next = 0;
};

// Some outputs of the first row against the oracle.
absl::Status Verify(const MatrixView& input, const StoredWeight& weight,
                    const std::vector<float>& sums) {
  constexpr int64_t kOutputs = 16;
  constexpr double kTolerance = 1e-4;  // of sums whose size is about 1
  std::vector<float> rows(kOutputs * kFeatures);
  weight.ReadOutputs(0, kOutputs, rows.data());
  const MatrixView wide = {DType::kF32, kOutputs, kFeatures,
                           reinterpret_cast<const std::byte*>(rows.data())};
  const std::vector<double> exact =
      ReferenceProduct(input.Rows(0, 1), wide, WeightLayout::kOutIn, nullptr);
  for (int64_t o = 0; o < kOutputs; ++o) {
    if (std::abs(sums[o] - exact[o]) > kTolerance) {
      return absl::InternalError(fmt::format("output {} is {}, not {}", o, sums[o], exact[o]));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunForwardSuite(SuiteContext& context) {
  context.report.Begin("forward",
                       fmt::format("{} threads, weights are read from memory", context.threads));
  const Kernels kernels;
  ThreadPool pool("bench", context.threads, PrepareComputeThread);
  std::vector<Tensor> weights;
  std::vector<Nf4Matrix> quantised;
  constexpr int64_t kBytes = kFeatures * kFeatures * 2;
  constexpr int64_t kNf4Bytes = kBytes / 4;
  for (int64_t i = 0; i <= kBeyondBytes / kBytes; ++i) {
    weights.push_back(RandomMatrix(DType::kBF16, kFeatures, kFeatures, kTrainedWeight, i + 3));
  }
  for (int64_t i = 0; i <= kBeyondBytes / kNf4Bytes; ++i) {
    quantised.emplace_back(AsMatrix(weights[i % weights.size()]), kBlock);
  }
  Turns dense;
  Turns narrow;
  for (const Tensor& weight : weights) dense.weights.push_back({AsMatrix(weight)});
  for (const Nf4Matrix& matrix : quantised) narrow.weights.push_back({&matrix});
  for (const int64_t rows : {1, 16, 64}) {
    const Tensor input = RandomMatrix(DType::kBF16, rows, kFeatures, 1, 4);
    std::vector<float> sums(rows * kFeatures);
    const auto multiply = [&](const StoredWeight& stored) {
      const BaseRun run = {rows, stored};
      return MultiplyBase(kernels, pool, AsMatrix(input), {&run, 1}, sums.data(), Cancellation());
    };
    for (const StoredWeight* stored : {&narrow.weights[0], &dense.weights[0]}) {
      RETURN_IF_ERROR(multiply(*stored));
      RETURN_IF_ERROR(Verify(AsMatrix(input), *stored, sums));
    }
    ASSIGN_OR_RETURN(const Comparison comparison,
                     MeasureAlternating(
                         context.quick ? kQuick : kFull, [&] { return multiply(narrow.Next()); },
                         [&] { return multiply(dense.Next()); }));
    context.report.Add({"forward", "Forward, NF4",
                        fmt::format("m={} {}x{}", rows, kFeatures, kFeatures), "bf16",
                        "BF16 weight", comparison, rows == 1 ? kOneRowBars : kManyRowsBars});
  }
  return absl::OkStatus();
}

}  // namespace adapterd::bench
