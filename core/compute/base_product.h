// W x + bias: what the base model's layer puts out, before any adapter.
#ifndef ADAPTERD_CORE_COMPUTE_BASE_PRODUCT_H_
#define ADAPTERD_CORE_COMPUTE_BASE_PRODUCT_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/compute/projection.h"
#include "core/compute/stored_weight.h"

namespace adapterd {

// A run of input rows that go through one weight.
struct BaseRun {
  int64_t rows = 0;
  StoredWeight weight;
  MatrixView bias = {};  // [1, out_features]; without data: none
  double scale = 1;      // on rows of embeddings
};

// sums [rows of all runs, out_features] = W x + bias in F32, or, for token ids, scale x row `id` of
// the weight. Nothing is rounded before the sum: types are widened exactly; weights in 4 bits that
// meet BF16 inputs are taken as the sum of two BF16, which is good to 2^-16 of the weight.
//
// Never holds more of a weight than a block of rows in another type than the one it is stored in.
//
// REQUIRES: shapes agree; the rows of the runs are the input's; ids are rows of the weights; token
// ids for kInOut without a bias, floats otherwise.
//
// Threads and cancellation: as ApplyProjection. Results do not depend on the number of threads.
// Cost: of few rows, as reading the weight once.
absl::Status MultiplyBase(const Kernels& kernels, ThreadPool& pool, const ProjectionInput& input,
                          std::span<const BaseRun> runs, float* sums,
                          const Cancellation& cancellation);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_BASE_PRODUCT_H_
