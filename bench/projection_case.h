// One shape of projection, packed as a server holds it.
#ifndef ADAPTERD_BENCH_PROJECTION_CASE_H_
#define ADAPTERD_BENCH_PROJECTION_CASE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/data.h"
#include "bench/roofline.h"
#include "core/base/thread_pool.h"
#include "core/compute/projection.h"

namespace adapterd::bench {

struct ProjectionShape {
  DType dtype = DType::kBF16;  // of all four matrices, unless factors are F32
  int64_t rows = 0;
  int64_t features = 0;  // in and out
  int64_t rank = 0;
  bool f32_factors = false;

  DType factor_dtype() const { return f32_factors ? DType::kF32 : dtype; }
  std::string Describe() const;  // "m=16 d=4096 r=8"
};

// How its adapters, each in memory of its own, are used.
enum class AdapterUse {
  kInTurns,     // each call has the next one for all of its rows
  kOneEachRow,  // every row of a call names another one
};

// One thread at a time.
class ProjectionCase {
 public:
  // With several adapters all of them hold the same factors.
  static absl::StatusOr<std::unique_ptr<ProjectionCase>> Create(
      const Kernels& kernels, ThreadPool& pool, const ProjectionShape& shape, int64_t adapters = 1,
      AdapterUse use = AdapterUse::kInTurns);

  // Bytes that one adapter of this shape takes once it is packed.
  static absl::StatusOr<int64_t> PackedBytes(const Kernels& kernels, const ProjectionShape& shape);

  absl::Status Run();
  // Whether what a Run just wrote is right.
  absl::Status Verify() const;
  // Threads that a Run takes, this one included, as their CPU times tell.
  absl::StatusOr<int> BusyThreads();

  // What one Run cannot avoid, with the factors in the caches or `cold`.
  Work work(bool cold) const;
  const ProjectionShape& shape() const { return shape_; }
  const Factors& factors() const { return factors_; }
  MatrixView input() const { return AsMatrix(input_); }

 private:
  ProjectionCase(const Kernels& kernels, ThreadPool& pool, const ProjectionShape& shape);
  void SetTargets(AdapterUse use);

  const Kernels& kernels_;
  ThreadPool& pool_;
  const ProjectionShape shape_;
  const Factors factors_;
  const Tensor input_;
  OutputMatrix output_;
  std::vector<std::unique_ptr<const PackedPair>> pairs_;
  std::vector<ProjectionTarget> targets_;  // of one call each
  size_t next_ = 0;
  const Cancellation cancellation_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_PROJECTION_CASE_H_
