// Conversions between F32, F16 (IEEE 754 binary16) and BF16 (the upper half of binary32).
//
// To a narrower type: round to nearest, ties to even; overflow gives infinity; subnormals are
// exact; a NaN stays a NaN (made quiet, sign and leading payload bits kept). To a wider type:
// exact. Pure functions; source and destination must not overlap and need no alignment.
#ifndef ADAPTERD_CORE_TENSOR_CONVERT_H_
#define ADAPTERD_CORE_TENSOR_CONVERT_H_

#include <cstddef>
#include <cstdint>

#include "core/tensor/dtype.h"

namespace adapterd {

// `count` elements. REQUIRES: IsComputeFloat(from).
void ConvertToF32(DType from, const std::byte* source, float* destination, int64_t count);

// `count` elements. REQUIRES: IsComputeFloat(to).
void ConvertFromF32(const float* source, DType to, std::byte* destination, int64_t count);

// One element, for oracles and tests; the arrays above give the same bits.
float F16ToF32(uint16_t bits);
uint16_t F32ToF16(float value);
float BF16ToF32(uint16_t bits);
uint16_t F32ToBF16(float value);

// The largest magnitude among the elements: NaN when one is NaN, else infinite when one is; 0 of
// none. REQUIRES: IsComputeFloat(dtype).
float MaxMagnitude(DType dtype, const std::byte* data, int64_t count);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_TENSOR_CONVERT_H_
