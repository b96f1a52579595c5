#include "core/compute/block_rows.h"

#include <algorithm>
#include <cstring>

#include "core/compute/pair_impl.h"
#include "core/compute/scratch.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

bool IsAligned(const std::byte* data, int64_t alignment) {
  return reinterpret_cast<uintptr_t>(data) % alignment == 0;
}

bool IsKernelOutput(const MutableMatrixView& output, DType type, int64_t rows, int64_t columns) {
  return output.dtype == type && output.rows == rows && output.cols == columns &&
         IsAligned(output.data, FloatBytes(type));
}

}  // namespace

bool BlockInput::IsUsable(DType dtype) const {
  return rows_.dtype == dtype && rows_.rows == computed_rows_ &&
         IsAligned(rows_.data, FloatBytes(dtype));
}

const void* BlockInput::AsF32() {
  if (f32_ != nullptr) return f32_;
  if (IsUsable(DType::kF32)) return f32_ = rows_.data;
  const int64_t padded = computed_rows_ * rows_.cols;
  auto* made = Scratch::OfThisThread().Get<float>(Scratch::kInputF32, padded);
  const int64_t count = rows_.rows * rows_.cols;
  ConvertToF32(rows_.dtype, rows_.data, made, count);
  std::fill(made + count, made + padded, 0.0f);
  return f32_ = made;
}

const void* BlockInput::AsBF16() {
  if (bf16_ != nullptr) return bf16_;
  if (IsUsable(DType::kBF16)) return bf16_ = rows_.data;
  const int64_t padded = computed_rows_ * rows_.row_bytes();
  auto* made = Scratch::OfThisThread().Get<std::byte>(Scratch::kInputBF16, padded);
  std::memcpy(made, rows_.data, rows_.bytes());
  std::memset(made + rows_.bytes(), 0, padded - rows_.bytes());
  return bf16_ = made;
}

BlockSums::BlockSums(const MutableMatrixView& output, int64_t first, int64_t columns,
                     int64_t computed_rows, Type type)
    : output_(output),
      first_(first),
      columns_(columns),
      computed_rows_(computed_rows),
      type_(type == Type::kF32 ? DType::kF32 : output.dtype),
      in_place_(IsKernelOutput(output, type_, computed_rows, columns)),
      data_(in_place_ ? output.data
                      : Scratch::OfThisThread().Get<std::byte>(
                            Scratch::kSums, computed_rows * columns * FloatBytes(type_))) {}

void BlockSums::Start(const MatrixView& base) {
  if (in_place_ && base.data == output_.data) return;
  for (int64_t row = 0; row < base.rows; ++row) {
    ConvertToF32(base.dtype, base.data + Offset(row, base.dtype), Row(row), columns_);
  }
  std::fill(Row(base.rows), Row(computed_rows_), 0.0f);
}

void BlockSums::AddBias(const float* bias, double factor) {
  const auto scale = static_cast<float>(factor);
  for (int64_t row = 0; row < output_.rows; ++row) {
    float* sums = Row(row);
    for (int64_t i = 0; i < columns_; ++i) sums[i] += scale * bias[first_ + i];
  }
}

void BlockSums::Rescale(const DoraRescale& dora) {
  const float* gain = dora.gain + first_;
  for (int64_t row = 0; row < output_.rows; ++row) {
    float* sums = Row(row);
    if (dora.base_bias == nullptr) {
      for (int64_t i = 0; i < columns_; ++i) sums[i] *= gain[i];
    } else {
      const float* bias = dora.base_bias + first_;
      for (int64_t i = 0; i < columns_; ++i) sums[i] = bias[i] + gain[i] * (sums[i] - bias[i]);
    }
  }
}

void BlockSums::Finish() {
  if (in_place_) return;
  for (int64_t row = 0; row < output_.rows; ++row) {
    std::byte* to = output_.data + Offset(row, output_.dtype);
    if (type_ == output_.dtype) {
      const int64_t bytes = columns_ * FloatBytes(type_);
      std::memcpy(to, data_ + row * bytes, bytes);
    } else {
      ConvertFromF32(Row(row), output_.dtype, to, columns_);
    }
  }
}

}  // namespace adapterd
