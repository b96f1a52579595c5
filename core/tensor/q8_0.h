// ggml's Q8_0: blocks of 32 elements, each a scale d (F16) and 32 signed bytes q; an element is
// d x q. Exact in F32: 11 and 8 significant bits, and the smallest d times 1 is a normal number.
#ifndef ADAPTERD_CORE_TENSOR_Q8_0_H_
#define ADAPTERD_CORE_TENSOR_Q8_0_H_

#include <cstddef>
#include <cstdint>

namespace adapterd {

inline constexpr int64_t kQ8BlockElements = 32;
inline constexpr int64_t kQ8BlockBytes = 34;

// `blocks` blocks to as many times 32 values. Nothing needs alignment; the two must not overlap.
void DequantizeQ8_0(const std::byte* source, float* destination, int64_t blocks);

// The largest magnitude among the elements; NaN when a scale is NaN or infinite. 0 of none.
float MaxMagnitudeQ8_0(const std::byte* source, int64_t blocks);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_TENSOR_Q8_0_H_
