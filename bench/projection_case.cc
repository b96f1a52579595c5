#include "bench/projection_case.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "bench/verify.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int kMinRunsForThreads = 3;
constexpr double kSecondsForThreads = 0.01;

double CpuSeconds(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

PairTypes TypesOf(const Kernels& kernels, const ProjectionShape& shape) {
  const DType factors = shape.factor_dtype();
  return {kernels.ComputeTypeFor(shape.dtype, factors, factors), factors, factors};
}

}  // namespace

std::string ProjectionShape::Describe() const {
  return fmt::format("m={} d={} r={}", rows, features, rank);
}

ProjectionCase::ProjectionCase(const Kernels& kernels, ThreadPool& pool,
                               const ProjectionShape& shape)
    : kernels_(kernels),
      pool_(pool),
      shape_(shape),
      factors_(shape.factor_dtype(), shape.features, shape.rank),
      input_(RandomMatrix(shape.dtype, shape.rows, shape.features, 1, 3)),
      output_(shape.dtype, shape.rows, shape.features) {}

absl::StatusOr<std::unique_ptr<ProjectionCase>> ProjectionCase::Create(const Kernels& kernels,
                                                                       ThreadPool& pool,
                                                                       const ProjectionShape& shape,
                                                                       int64_t adapters,
                                                                       AdapterUse use) {
  std::unique_ptr<ProjectionCase> made(new ProjectionCase(kernels, pool, shape));
  const PairTypes types = TypesOf(kernels, shape);
  for (int64_t i = 0; i < adapters; ++i) {
    ASSIGN_OR_RETURN(auto pair, PackedPair::Pack(kernels, made->factors_.a_view(),
                                                 made->factors_.b_view(), types.type));
    made->pairs_.push_back(std::move(pair));
  }
  made->SetTargets(use);
  RETURN_IF_ERROR(made->Run());
  RETURN_IF_ERROR(made->Verify());
  return made;
}

absl::StatusOr<int64_t> ProjectionCase::PackedBytes(const Kernels& kernels,
                                                    const ProjectionShape& shape) {
  return PackedPair::BytesFor(kernels, {shape.features, shape.rank, shape.features},
                              TypesOf(kernels, shape));
}

void ProjectionCase::SetTargets(AdapterUse use) {
  const int64_t rows = use == AdapterUse::kOneEachRow ? 1 : shape_.rows;
  for (const auto& pair : pairs_) {
    if (targets_.empty() || use == AdapterUse::kInTurns) {
      targets_.push_back({{}, std::nullopt, output_.view()});
    }
    targets_.back().segments.push_back({rows, {{pair.get(), factors_.scale}}});
  }
}

absl::Status ProjectionCase::Run() {
  const ProjectionTarget& target = targets_[next_];
  next_ = next_ + 1 == targets_.size() ? 0 : next_ + 1;
  return ApplyProjection(kernels_, pool_, input(), {&target, 1}, cancellation_);
}

absl::Status ProjectionCase::Verify() const {
  return VerifyProjection(input(), factors_, output_.read());
}

absl::StatusOr<int> ProjectionCase::BusyThreads() {
  const double all = CpuSeconds(CLOCK_PROCESS_CPUTIME_ID);
  const double own = CpuSeconds(CLOCK_THREAD_CPUTIME_ID);
  for (int i = 0;
       i < kMinRunsForThreads || CpuSeconds(CLOCK_THREAD_CPUTIME_ID) - own < kSecondsForThreads;
       ++i) {
    RETURN_IF_ERROR(Run());
  }
  const double share =
      (CpuSeconds(CLOCK_PROCESS_CPUTIME_ID) - all) / (CpuSeconds(CLOCK_THREAD_CPUTIME_ID) - own);
  return std::clamp(static_cast<int>(std::lround(share)), 1, pool_.threads());
}

Work ProjectionCase::work(bool cold) const {
  const auto features = static_cast<double>(shape_.features);
  Work work;
  work.dtype = shape_.dtype;
  work.flops = 4 * static_cast<double>(shape_.rows) * features * static_cast<double>(shape_.rank);
  work.read_bytes = factors_.a_view().bytes() + factors_.b_view().bytes();
  work.split_bytes = 2 * input().bytes();
  work.is_cold = cold;
  return work;
}

}  // namespace adapterd::bench
