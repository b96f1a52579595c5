// The oracle: plain loops with double sums that every fast path is tested against. Slow on purpose.
#ifndef ADAPTERD_CORE_COMPUTE_REFERENCE_H_
#define ADAPTERD_CORE_COMPUTE_REFERENCE_H_

#include <span>
#include <vector>

#include "core/tensor/tensor.h"

namespace adapterd {

struct ReferenceTerm {
  MatrixView a;  // [rank, in_features]
  MatrixView b;  // [out_features, rank]
  double factor = 1;
};

// [rows x out_features] of sum over terms of factor * B (A x), unrounded. Pure.
std::vector<double> ReferenceDelta(const MatrixView& input, std::span<const ReferenceTerm> terms,
                                   int64_t out_features);

// [out_features x in_features] of sum over terms of factor * B A, unrounded. Pure.
std::vector<double> ReferenceWeightDelta(std::span<const ReferenceTerm> terms, int64_t out_features,
                                         int64_t in_features);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_REFERENCE_H_
