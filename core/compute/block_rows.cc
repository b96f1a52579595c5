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

bool IsKernelOutput(const MutableMatrixView& output, int64_t columns) {
  return output.dtype == DType::kF32 && columns == output.cols &&
         RowBucket(output.rows) == output.rows && IsAligned(output.data, alignof(float));
}

}  // namespace

bool BlockInput::IsUsable(DType dtype) const {
  return rows_.dtype == dtype && rows_.rows == RowBucket(rows_.rows) &&
         IsAligned(rows_.data, FloatBytes(dtype));
}

const void* BlockInput::AsF32() {
  if (f32_ != nullptr) return f32_;
  if (IsUsable(DType::kF32)) return f32_ = rows_.data;
  const int64_t padded = RowBucket(rows_.rows) * rows_.cols;
  auto* made = Scratch::OfThisThread().Get<float>(Scratch::kInputF32, padded);
  const int64_t count = rows_.rows * rows_.cols;
  ConvertToF32(rows_.dtype, rows_.data, made, count);
  std::fill(made + count, made + padded, 0.0f);
  return f32_ = made;
}

const void* BlockInput::AsBF16() {
  if (bf16_ != nullptr) return bf16_;
  if (IsUsable(DType::kBF16)) return bf16_ = rows_.data;
  const int64_t padded = RowBucket(rows_.rows) * rows_.row_bytes();
  auto* made = Scratch::OfThisThread().Get<std::byte>(Scratch::kInputBF16, padded);
  std::memcpy(made, rows_.data, rows_.bytes());
  std::memset(made + rows_.bytes(), 0, padded - rows_.bytes());
  return bf16_ = made;
}

BlockSums::BlockSums(const MutableMatrixView& output, int64_t first, int64_t columns)
    : output_(output),
      first_(first),
      columns_(columns),
      in_place_(IsKernelOutput(output, columns)),
      data_(in_place_ ? reinterpret_cast<float*>(output.data)
                      : Scratch::OfThisThread().Get<float>(Scratch::kSums,
                                                           RowBucket(output.rows) * columns)) {}

void BlockSums::Start(const MatrixView& base) {
  if (in_place_ && base.data == output_.data) return;
  if (columns_ == base.cols) {
    ConvertToF32(base.dtype, base.data, data_, base.rows * columns_);
  } else {
    for (int64_t row = 0; row < base.rows; ++row) {
      ConvertToF32(base.dtype, base.data + Offset(row, base.dtype), data_ + row * columns_,
                   columns_);
    }
  }
  std::fill(data_ + base.rows * columns_, data_ + RowBucket(base.rows) * columns_, 0.0f);
}

void BlockSums::AddBias(const float* bias, double factor) {
  const auto scale = static_cast<float>(factor);
  for (int64_t row = 0; row < output_.rows; ++row) {
    float* sums = data_ + row * columns_;
    for (int64_t i = 0; i < columns_; ++i) sums[i] += scale * bias[first_ + i];
  }
}

void BlockSums::Rescale(const DoraRescale& dora) {
  const float* gain = dora.gain + first_;
  for (int64_t row = 0; row < output_.rows; ++row) {
    float* sums = data_ + row * columns_;
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
  if (columns_ == output_.cols) {
    ConvertFromF32(data_, output_.dtype, output_.data, output_.rows * columns_);
    return;
  }
  for (int64_t row = 0; row < output_.rows; ++row) {
    ConvertFromF32(data_ + row * columns_, output_.dtype, output_.data + Offset(row, output_.dtype),
                   columns_);
  }
}

}  // namespace adapterd
