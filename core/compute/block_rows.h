// The two ends of a block of rows: what kernels read, and the sums that become its output. For this
// room only.
#ifndef ADAPTERD_CORE_COMPUTE_BLOCK_ROWS_H_
#define ADAPTERD_CORE_COMPUTE_BLOCK_ROWS_H_

#include <cstdint>

#include "core/compute/kernels.h"
#include "core/compute/projection.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// The rows of a block as kernels take them: of the type they multiply in, aligned, and as many as
// are computed, with zeros after the last. Made when first asked for, in the calling thread's
// scratch.
class BlockInput {
 public:
  BlockInput(const MatrixView& rows, int64_t computed_rows)
      : rows_(rows), computed_rows_(computed_rows) {}

  const void* As(ComputeType type) { return type == ComputeType::kBF16 ? AsBF16() : AsF32(); }

 private:
  bool IsUsable(DType dtype) const;
  const void* AsF32();
  const void* AsBF16();

  const MatrixView rows_;
  const int64_t computed_rows_;
  const void* f32_ = nullptr;
  const void* bf16_ = nullptr;
};

// Columns [first, first + columns) of a block's output while they are summed: in the calling
// thread's scratch, or in the output itself when that has the form that kernels write.
class BlockSums {
 public:
  // Sums are F32, or of the output's type when one product makes all of it.
  enum class Type { kF32, kOutput };

  BlockSums(const MutableMatrixView& output, int64_t first, int64_t columns, int64_t computed_rows,
            Type type);

  // [computed rows, columns], uninitialised before Start or the first product.
  std::byte* data() { return data_; }

  // The following are for F32 alone.
  // sums = base, whose columns are the output's, and zero in the rows that are only computed.
  void Start(const MatrixView& base);
  // sums += factor * bias [out_features], in every row.
  void AddBias(const float* bias, double factor);
  // sums = bias + gain * (sums - bias).
  void Rescale(const DoraRescale& dora);

  // Brings the sums to the output, rounded to its type.
  void Finish();

 private:
  float* Row(int64_t row) { return reinterpret_cast<float*>(data_) + row * columns_; }
  // Bytes from a matrix's start to this row's first column of the chunk.
  int64_t Offset(int64_t row, DType dtype) const {
    return (row * output_.cols + first_) * FloatBytes(dtype);
  }

  const MutableMatrixView output_;
  const int64_t first_;
  const int64_t columns_;
  const int64_t computed_rows_;
  const DType type_;
  const bool in_place_;
  std::byte* const data_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_BLOCK_ROWS_H_
