// The norms that DoRA divides by: of the rows of an adapted weight.
#ifndef ADAPTERD_CORE_COMPUTE_DORA_NORMS_H_
#define ADAPTERD_CORE_COMPUTE_DORA_NORMS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/compute/kernels.h"
#include "core/compute/merge.h"

namespace adapterd {

// n[o] = the 2-norm of all weights of W + factor * B A that lead to output o, without an epsilon
// (peft/tuners/lora/dora.py: dim=1 of [out, in]). W is given in blocks of rows and not kept, so
// that it need not fit into memory. Deltas are F32; sums of squares are double.
//
// Threads: one at a time; Add shares its work with idle threads of the pool. Results do not depend
// on the number of threads. Cost: as much as a merge that only reads, and out_features doubles.
class DoraNorms {
 public:
  // For W [rows, cols] in `layout`: kInOut also fits embeddings, [token ids, dim], with a norm a
  // dimension. The term's factors must outlive the result. REQUIRES: shapes agree.
  static absl::StatusOr<DoraNorms> Create(const Kernels& kernels, const MergeTerm& term,
                                          WeightLayout layout, int64_t rows, int64_t cols);
  DoraNorms(DoraNorms&&) noexcept;
  DoraNorms& operator=(DoraNorms&&) noexcept;
  ~DoraNorms();

  // Rows [first_row, first_row + weight.rows) of W, of any compute float. After an error, which
  // CANCELLED is, the norms are undefined. REQUIRES: every row is added exactly once.
  absl::Status Add(ThreadPool& pool, int64_t first_row, const MatrixView& weight,
                   const Cancellation& cancellation);

  // [out_features], once all rows have been added.
  std::vector<double> Finish() const;
  // Of outputs [first, first + count), once all rows that lead to them have been added.
  std::vector<double> Finish(int64_t first, int64_t count) const;

 private:
  class Impl;
  explicit DoraNorms(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// magnitude / norm, rounded to F32. NaN for a norm that is zero, infinite or NaN: what PEFT makes
// of such a row is not a number either, except that weights beside an infinite one become zeros.
// REQUIRES: equal sizes.
std::vector<float> DoraGains(std::span<const float> magnitude, std::span<const double> norms);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_DORA_NORMS_H_
