// Transposes words in memory.
#ifndef ADAPTERD_CORE_TENSOR_TRANSPOSE_H_
#define ADAPTERD_CORE_TENSOR_TRANSPOSE_H_

#include <cstddef>
#include <cstdint>

#include "core/tensor/tensor.h"

namespace adapterd {

// Word j of row i of `from` becomes word i of row j of `to`, for i < rows and j < cols; bits are
// only moved. A row begins `stride` bytes after the one before. Nothing needs alignment; the two
// must not overlap. Pure, from any thread. Defined for uint16_t and uint32_t.
// Cost: as copying, when 16 rows or columns of the wider side fit the first cache.
template <typename Word>
void Transpose(const std::byte* from, int64_t from_stride, int64_t rows, int64_t cols,
               std::byte* to, int64_t to_stride);

extern template void Transpose<uint16_t>(const std::byte*, int64_t, int64_t, int64_t, std::byte*,
                                         int64_t);
extern template void Transpose<uint32_t>(const std::byte*, int64_t, int64_t, int64_t, std::byte*,
                                         int64_t);

// The transposed matrix in memory of its own. REQUIRES: two dimensions of a float type.
Tensor TransposedMatrix(const Tensor& matrix);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_TENSOR_TRANSPOSE_H_
