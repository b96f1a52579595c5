// The two ends of a block of rows: what kernels read, and the sums that become its output. For this
// room only.
#ifndef ADAPTERD_CORE_COMPUTE_BLOCK_ROWS_H_
#define ADAPTERD_CORE_COMPUTE_BLOCK_ROWS_H_

#include <cstdint>

#include "core/compute/kernels.h"
#include "core/compute/projection.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// The rows of a block as kernels take them: of the type they multiply in, aligned, and as many as a
// bucket has, with zeros after the last. Made when first asked for, in the calling thread's
// scratch.
class BlockInput {
 public:
  explicit BlockInput(const MatrixView& rows) : rows_(rows) {}

  const void* As(ComputeType type) { return type == ComputeType::kBF16 ? AsBF16() : AsF32(); }

 private:
  bool IsUsable(DType dtype) const;
  const void* AsF32();
  const void* AsBF16();

  const MatrixView rows_;
  const void* f32_ = nullptr;
  const void* bf16_ = nullptr;
};

// Columns [first, first + columns) of a block's output while they are summed in F32: in the calling
// thread's scratch, or in the output itself when that has the form that kernels write.
class BlockSums {
 public:
  BlockSums(const MutableMatrixView& output, int64_t first, int64_t columns);

  // [bucket of rows, columns], uninitialised before Start or the first product.
  float* data() { return data_; }

  // sums = base, whose columns are the output's, and zero in the rows that fill the bucket.
  void Start(const MatrixView& base);
  // sums += factor * bias [out_features], in every row.
  void AddBias(const float* bias, double factor);
  // sums = bias + gain * (sums - bias).
  void Rescale(const DoraRescale& dora);
  // Rounds to the output.
  void Finish();

 private:
  // Bytes from a matrix's start to this row's first column of the chunk.
  int64_t Offset(int64_t row, DType dtype) const {
    return (row * output_.cols + first_) * FloatBytes(dtype);
  }

  const MutableMatrixView output_;
  const int64_t first_;
  const int64_t columns_;
  const bool in_place_;
  float* const data_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_BLOCK_ROWS_H_
