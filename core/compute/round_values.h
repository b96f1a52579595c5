// The elementwise half of a merge that does more than add: new values for a weight, rounded once.
// For this room only.
#ifndef ADAPTERD_CORE_COMPUTE_ROUND_VALUES_H_
#define ADAPTERD_CORE_COMPUTE_ROUND_VALUES_H_

#include <cstddef>
#include <cstdint>

#include "core/compute/add_rounded.h"
#include "core/tensor/dtype.h"

namespace adapterd {

// merged[i] = values[i], rounded to `merged_type`. Here a delta is values[i] - weight[i], an error
// values[i] - merged[i], both exact in double, and a delta is zeroed when the result has the bits
// that the weight alone would have been rounded to. Elements whose weight is not finite count in
// non_finite only.
//
// `merged` is `weight`, when they have one type, or does not overlap it; no alignment is needed of
// either. Pure.
RoundingStats RoundValues(DType weight_type, const std::byte* weight, const float* values,
                          DType merged_type, std::byte* merged, int64_t count);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_ROUND_VALUES_H_
