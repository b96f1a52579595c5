// Dimensions of a tensor, outermost first, row-major.
#ifndef ADAPTERD_CORE_TENSOR_SHAPE_H_
#define ADAPTERD_CORE_TENSOR_SHAPE_H_

#include <cstdint>
#include <span>
#include <string>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "core/tensor/dtype.h"

namespace adapterd {

using Shape = absl::InlinedVector<int64_t, 4>;

// Product of the dimensions; 1 for a scalar. SHAPE_MISMATCH when one is negative or the product
// does not fit in an int64 (checked left to right, as safetensors does: a zero does not excuse an
// overflow before it).
absl::StatusOr<int64_t> ElementCount(std::span<const int64_t> shape);

// ElementCount x width, in bytes. SHAPE_MISMATCH as above, or when sub-byte elements do not fill
// whole bytes.
absl::StatusOr<int64_t> ByteCount(DType dtype, std::span<const int64_t> shape);

// "[8, 64]"
std::string ShapeString(std::span<const int64_t> shape);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_TENSOR_SHAPE_H_
