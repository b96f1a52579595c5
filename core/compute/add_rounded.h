// The elementwise half of a merge: weight + delta, rounded once, with a record of what that did.
#ifndef ADAPTERD_CORE_COMPUTE_ADD_ROUNDED_H_
#define ADAPTERD_CORE_COMPUTE_ADD_ROUNDED_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/tensor/dtype.h"

namespace adapterd {

// Over any number of elements. Elements whose result is not finite are counted and take no part in
// the rest.
struct RoundingStats {
  float max_abs_delta = 0;
  float max_abs_error = 0;
  double sum_squared_deltas = 0;
  double sum_squared_errors = 0;  // of weight + delta, exactly, minus the result
  int64_t zeroed = 0;             // non-zero deltas that left the weight's bits unchanged
  int64_t non_finite = 0;
  int64_t newly_non_finite = 0;  // of finite weights

  void Add(const RoundingStats& other);
};

// merged[i] = weight[i] + delta[i], added in F32 and rounded to `dtype`; where delta[i] is zero the
// weight's bits. `merged` is `weight` or does not overlap it; no alignment is needed. Sums of
// squares are good to about 1e-5. Pure.
RoundingStats AddRounded(DType dtype, const std::byte* weight, const float* delta,
                         std::byte* merged, int64_t count);

// The same, compiled for one instruction set.
struct AddRoundedVariant {
  std::string_view name;
  RoundingStats (*add)(DType, const std::byte*, const float*, std::byte*, int64_t);
};

// Those that this CPU runs, the fastest first: AddRounded is the first.
std::vector<AddRoundedVariant> AddRoundedVariants();

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_ADD_ROUNDED_H_
