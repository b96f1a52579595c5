// Tensors: an owning one, and the matrix views that the arithmetic takes.
#ifndef ADAPTERD_CORE_TENSOR_TENSOR_H_
#define ADAPTERD_CORE_TENSOR_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "core/tensor/aligned_buffer.h"
#include "core/tensor/dtype.h"
#include "core/tensor/shape.h"

namespace adapterd {

// A dense row-major little-endian tensor that owns its bytes. Movable; immutable once shared, and
// then readable from any thread.
class Tensor {
 public:
  Tensor() = default;
  // REQUIRES: buffer.size() == ByteCount(dtype, shape).
  Tensor(DType dtype, Shape shape, AlignedBuffer buffer)
      : dtype_(dtype), shape_(std::move(shape)), buffer_(std::move(buffer)) {}

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::span<const std::byte> bytes() const { return buffer_.span(); }
  // Its memory, for whoever needs some.
  AlignedBuffer Release() && { return std::move(buffer_); }

 private:
  DType dtype_ = DType::kF32;
  Shape shape_;
  AlignedBuffer buffer_;
};

// A read-only view of rows x cols elements of a float type (F32, F16, BF16), row-major without
// gaps. The bytes belong to someone else and need no alignment.
struct MatrixView {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;

  int64_t row_bytes() const { return cols * FloatBytes(dtype); }
  int64_t bytes() const { return rows * row_bytes(); }
  // Rows [first, first + count).
  MatrixView Rows(int64_t first, int64_t count) const {
    return {dtype, count, cols, data + first * row_bytes()};
  }
};

// The same, writable.
struct MutableMatrixView {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::byte* data = nullptr;

  int64_t row_bytes() const { return cols * FloatBytes(dtype); }
  int64_t bytes() const { return rows * row_bytes(); }
  MutableMatrixView Rows(int64_t first, int64_t count) const {
    return {dtype, count, cols, data + first * row_bytes()};
  }
};

// REQUIRES: two dimensions of a float type.
inline MatrixView AsMatrix(const Tensor& tensor) {
  return {tensor.dtype(), tensor.shape()[0], tensor.shape()[1], tensor.bytes().data()};
}

}  // namespace adapterd

#endif  // ADAPTERD_CORE_TENSOR_TENSOR_H_
