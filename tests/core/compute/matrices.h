// Matrices for tests: owning, of any float type, at any alignment.
#ifndef ADAPTERD_TESTS_CORE_COMPUTE_MATRICES_H_
#define ADAPTERD_TESTS_CORE_COMPUTE_MATRICES_H_

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "core/tensor/convert.h"
#include "core/tensor/tensor.h"

namespace adapterd {

inline constexpr DType kFloatTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

class TestMatrix {
 public:
  // Zeros. `offset` bytes lie between a cache line and the first element.
  TestMatrix(DType dtype, int64_t rows, int64_t cols, int64_t offset = 0)
      : dtype_(dtype),
        rows_(rows),
        cols_(cols),
        offset_(offset),
        buffer_(offset + rows * cols * FloatBytes(dtype)) {
    std::ranges::fill(buffer_.span(), std::byte{0});
  }

  TestMatrix(const TestMatrix& other)
      : TestMatrix(other.dtype_, other.rows_, other.cols_, other.offset_) {
    if (bytes() > 0) std::memcpy(data(), other.data(), bytes());
  }
  TestMatrix& operator=(TestMatrix&&) = default;

  // Normally distributed, rounded to the type.
  static TestMatrix Random(DType dtype, int64_t rows, int64_t cols, uint32_t seed,
                           float deviation = 1, int64_t offset = 0) {
    TestMatrix matrix(dtype, rows, cols, offset);
    std::mt19937 generator(seed);
    std::normal_distribution<float> distribution(0, deviation);
    std::vector<float> values(rows * cols);
    for (float& value : values) value = distribution(generator);
    ConvertFromF32(values.data(), dtype, matrix.data(), rows * cols);
    return matrix;
  }

  // Every element has this one value.
  static TestMatrix Filled(DType dtype, int64_t rows, int64_t cols, float value) {
    TestMatrix matrix(dtype, rows, cols);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) matrix.Set(row, col, value);
    }
    return matrix;
  }

  std::byte* data() { return buffer_.data() + offset_; }
  const std::byte* data() const { return buffer_.data() + offset_; }
  MatrixView view() const { return {dtype_, rows_, cols_, data()}; }
  MutableMatrixView mutable_view() { return {dtype_, rows_, cols_, data()}; }
  int64_t bytes() const { return view().bytes(); }
  DType dtype() const { return dtype_; }

  float At(int64_t row, int64_t col) const {
    float value;
    ConvertToF32(dtype_, data() + Offset(row, col), &value, 1);
    return value;
  }
  void Set(int64_t row, int64_t col, float value) {
    ConvertFromF32(&value, dtype_, data() + Offset(row, col), 1);
  }
  // The bits of a 2-byte type.
  void SetBits(int64_t row, int64_t col, uint16_t bits) {
    std::memcpy(data() + Offset(row, col), &bits, sizeof(bits));
  }

  // Absolute values, exactly.
  TestMatrix Abs() const {
    TestMatrix result(dtype_, rows_, cols_);
    for (int64_t row = 0; row < rows_; ++row) {
      for (int64_t col = 0; col < cols_; ++col) result.Set(row, col, std::abs(At(row, col)));
    }
    return result;
  }

  // Bit for bit.
  bool operator==(const TestMatrix& other) const {
    return dtype_ == other.dtype_ && rows_ == other.rows_ && cols_ == other.cols_ &&
           std::ranges::equal(std::span(data(), bytes()), std::span(other.data(), bytes()));
  }

 private:
  int64_t Offset(int64_t row, int64_t col) const {
    return (row * cols_ + col) * FloatBytes(dtype_);
  }

  DType dtype_;
  int64_t rows_;
  int64_t cols_;
  int64_t offset_;
  AlignedBuffer buffer_;
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_COMPUTE_MATRICES_H_
