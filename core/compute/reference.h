// The oracle: plain loops with double sums that every fast path is tested against. Slow on purpose.
#ifndef ADAPTERD_CORE_COMPUTE_REFERENCE_H_
#define ADAPTERD_CORE_COMPUTE_REFERENCE_H_

#include <span>
#include <vector>

#include "core/compute/merge.h"
#include "core/compute/projection.h"
#include "core/tensor/tensor.h"

namespace adapterd {

struct ReferenceTerm {
  MatrixView a;  // [rank, in_features]
  MatrixView b;  // [out_features, rank]
  double factor = 1;
  const float* bias = nullptr;  // [out_features], B's own; null: none
};

// [rows x out_features] of sum over terms of factor * (B (A x) + bias), unrounded. Pure. For token
// ids A x is column `id` of A.
std::vector<double> ReferenceDelta(const ProjectionInput& input,
                                   std::span<const ReferenceTerm> terms, int64_t out_features);

// [rows x out_features] of W x + bias [out_features] (null: none), unrounded. Pure.
std::vector<double> ReferenceProduct(const MatrixView& input, const MatrixView& weight,
                                     WeightLayout layout, const float* bias);

// [rows x out_features] of base_bias + gain * (base_output - base_bias + delta), unrounded. Pure.
std::vector<double> ReferenceDora(const MatrixView& base_output, const DoraRescale& dora,
                                  std::span<const double> delta);

// [out_features x in_features] of sum over terms of factor * B A, unrounded. Pure.
std::vector<double> ReferenceWeightDelta(std::span<const ReferenceTerm> terms, int64_t out_features,
                                         int64_t in_features);

// In the shape of `weight`: weight + sum over terms of factor * B A, unrounded. Pure.
std::vector<double> ReferenceMerge(const MatrixView& weight, WeightLayout layout,
                                   std::span<const ReferenceTerm> terms);

// [out_features]: the 2-norms of the weights in `merged`, a matrix of this many columns, that lead
// to each output. Pure.
std::vector<double> ReferenceNorms(std::span<const double> merged, WeightLayout layout,
                                   int64_t cols);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_REFERENCE_H_
