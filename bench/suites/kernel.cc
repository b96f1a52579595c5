// ApplyProjection in process, against everything that can be said about it.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/naive.h"
#include "bench/onednn_variants.h"
#include "bench/projection_case.h"
#include "bench/pytorch.h"
#include "bench/roofline.h"
#include "bench/suite.h"
#include "bench/verify.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int64_t kFeatures = 4096;
constexpr int64_t kFewRows = 16;  // up to here the factors are most of the bytes
constexpr absl::Duration kTime = absl::Seconds(2);
constexpr absl::Duration kQuickTime = absl::Milliseconds(300);

constexpr Bars kOneDnnBars{1.1, 1};
constexpr Bars kNaiveBars{1.0 / 50, {}};
constexpr double kRooflineGoal = 1.5;
constexpr double kFewRowsRooflineGoal = 2.5;
constexpr double kPyTorchF32 = 1.0 / 2;
constexpr double kPyTorchBF16 = 1.0 / 5;

bool HasNaive(const ProjectionShape& shape) {
  return shape.dtype == DType::kF32 && shape.rows == 64 && shape.rank == 16;
}

class KernelSuite {
 public:
  KernelSuite(SuiteContext& context, ThreadPool& pool, const MachinePeaks& peaks)
      : context_(context), pool_(pool), peaks_(peaks), search_(pool) {}

  absl::Status Hot(const ProjectionShape& shape);
  absl::Status Cold(const ProjectionShape& shape);
  // F16 adapters, which stay F16 in memory, against the same ones in F32.
  absl::Status F16(const ProjectionShape& shape, bool cold);

 private:
  MeasureOptions Time() const { return {context_.quick ? kQuickTime : kTime}; }

  void Add(const ProjectionShape& shape, std::string name, std::string reference,
           const Comparison& comparison, Bars bars) {
    context_.report.Add({"kernel", std::move(name), shape.Describe(), LowerName(shape.dtype),
                         std::move(reference), comparison, bars});
  }
  absl::StatusOr<Roofline> AgainstRoofline(ProjectionCase& ours, const Timing& timing, bool cold);
  void AgainstPyTorch(const ProjectionShape& shape, const Timing& timing, const Roofline& roofline);

  SuiteContext& context_;
  ThreadPool& pool_;
  const MachinePeaks& peaks_;
  const Kernels kernels_;
  VariantSearch search_;
};

absl::StatusOr<Roofline> KernelSuite::AgainstRoofline(ProjectionCase& ours, const Timing& timing,
                                                      bool cold) {
  ASSIGN_OR_RETURN(const int threads, ours.BusyThreads());
  const Roofline roofline = peaks_.For(ours.work(cold), threads);
  const bool is_few = ours.shape().rows <= kFewRows;
  Add(ours.shape(), cold ? "projection, cold" : "projection",
      fmt::format("roofline, {} x{}", roofline.bound, threads), {timing, Timing::Of(roofline.us)},
      {{}, is_few ? kFewRowsRooflineGoal : kRooflineGoal});
  return roofline;
}

// F32 and BF16 have demands of their own, or else to be close to what the machine can do.
void KernelSuite::AgainstPyTorch(const ProjectionShape& shape, const Timing& timing,
                                 const Roofline& roofline) {
  const std::optional<double> us = PyTorchUs(shape);
  if (!us) return;
  const double demand = shape.dtype == DType::kF32 ? kPyTorchF32 : kPyTorchBF16;
  if (!IsPyTorchMachine(kernels_)) {
    Add(shape, "projection", "PyTorch: not this kind of machine", {timing, Timing::Of(*us)}, {});
    return;
  }
  Add(shape, "projection", "PyTorch 2.15, its figure", {timing, Timing::Of(*us)},
      {std::max(demand, kRooflineGoal * roofline.us / *us), {}});
}

absl::Status KernelSuite::Hot(const ProjectionShape& shape) {
  ASSIGN_OR_RETURN(const auto ours, ProjectionCase::Create(kernels_, pool_, shape));
  OutputMatrix output(shape.dtype, shape.rows, shape.features);
  ASSIGN_OR_RETURN(const auto variants,
                   search_.Find(ours->factors(), ours->input(), output.view()));
  const auto run_ours = [&] { return ours->Run(); };
  const auto naive = [&] {
    NaiveProjection(ours->input(), ours->factors().a_view(), ours->factors().b_view(),
                    static_cast<float>(ours->factors().scale), output.view());
    return absl::OkStatus();
  };
  std::vector<std::function<absl::Status()>> others;
  for (const auto& variant : variants) {
    RETURN_IF_ERROR(variant->Run());
    RETURN_IF_ERROR(VerifyProjection(ours->input(), ours->factors(), output.read()));
    others.emplace_back([&variant] { return variant->Run(); });
  }
  if (HasNaive(shape)) {
    RETURN_IF_ERROR(naive());
    RETURN_IF_ERROR(VerifyProjection(ours->input(), ours->factors(), output.read()));
    others.emplace_back(naive);
  }
  std::vector<Contestant> contestants = {{run_ours}};
  for (const auto& other : others) contestants.push_back({other});
  ASSIGN_OR_RETURN(const std::vector<Timing> timings, MeasureInTurns(Time(), contestants));

  const auto first = timings.begin() + 1;
  const auto best =
      std::min_element(first, first + static_cast<int64_t>(variants.size()),
                       [](const Timing& a, const Timing& b) { return a.median_us < b.median_us; });
  Add(shape, "projection", "oneDNN " + variants[best - first]->variant().Describe(),
      {timings[0], *best}, kOneDnnBars);
  ASSIGN_OR_RETURN(const Roofline roofline, AgainstRoofline(*ours, timings[0], /*cold=*/false));
  AgainstPyTorch(shape, timings[0], roofline);
  if (HasNaive(shape)) {
    Add(shape, "projection", "naive loops, 1 thread", {timings[0], timings.back()}, kNaiveBars);
  }
  return absl::OkStatus();
}

// Every call has an adapter that has not been used while 256 MB of others were.
absl::Status KernelSuite::Cold(const ProjectionShape& shape) {
  ASSIGN_OR_RETURN(const int64_t bytes, ProjectionCase::PackedBytes(kernels_, shape));
  ASSIGN_OR_RETURN(const auto ours,
                   ProjectionCase::Create(kernels_, pool_, shape, 1 + kBeyondBytes / bytes));
  const auto run_ours = [&] { return ours->Run(); };
  const Contestant contestants[] = {{run_ours}};
  ASSIGN_OR_RETURN(const std::vector<Timing> timings, MeasureInTurns(Time(), contestants));
  return AgainstRoofline(*ours, timings[0], /*cold=*/true).status();
}

absl::Status KernelSuite::F16(const ProjectionShape& shape, bool cold) {
  ProjectionShape wide = shape;
  wide.f32_factors = true;
  std::vector<std::unique_ptr<ProjectionCase>> cases;
  for (const ProjectionShape& each : {shape, wide}) {
    ASSIGN_OR_RETURN(const int64_t bytes, ProjectionCase::PackedBytes(kernels_, each));
    const int64_t adapters = cold ? 1 + kBeyondBytes / bytes : 1;
    ASSIGN_OR_RETURN(auto made, ProjectionCase::Create(kernels_, pool_, each, adapters));
    cases.push_back(std::move(made));
  }
  ASSIGN_OR_RETURN(const Comparison comparison,
                   MeasureAlternating(
                       Time(), [&] { return cases[0]->Run(); }, [&] { return cases[1]->Run(); }));
  Add(shape, cold ? "projection, cold" : "projection", "the same factors in F32", comparison, {});
  return absl::OkStatus();
}

}  // namespace

absl::Status RunKernelSuite(SuiteContext& context) {
  ThreadPool pool("bench", context.threads, PrepareComputeThread);
  ASSIGN_OR_RETURN(const MachinePeaks peaks, MachinePeaks::Measure(pool));
  context.report.Begin("peaks",
                       "what this machine was just measured to do at most, x threads; in CPU time, "
                       "so that other load does not lower it",
                       Report::Columns::kFigures);
  peaks.AddTo(context.report);
  context.report.Begin("kernel", fmt::format("{} threads, nothing pinned", context.threads));
  KernelSuite suite(context, pool, peaks);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t rank : {8, 16, 64}) {
      for (const int64_t rows : {1, 16, 64, 512, 2048}) {
        const ProjectionShape shape = {dtype, rows, kFeatures, rank};
        RETURN_IF_ERROR(suite.Hot(shape));
        if (rows <= kFewRows) RETURN_IF_ERROR(suite.Cold(shape));
      }
    }
  }
  for (const int64_t rank : {16, 64}) {
    for (const int64_t rows : {1, 2, 4, 8, 16, 64, 512}) {
      const ProjectionShape shape = {DType::kF16, rows, kFeatures, rank};
      RETURN_IF_ERROR(suite.F16(shape, /*cold=*/false));
      if (rows <= kFewRows) RETURN_IF_ERROR(suite.F16(shape, /*cold=*/true));
    }
  }
  return absl::OkStatus();
}

}  // namespace adapterd::bench
