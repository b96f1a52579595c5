// Matrices to work on.
#ifndef ADAPTERD_BENCH_DATA_H_
#define ADAPTERD_BENCH_DATA_H_

#include <cstdint>
#include <string>

#include "core/tensor/tensor.h"

namespace adapterd::bench {

// [rows, cols] of uniform values in [-bound, bound], the same ones for the same seed everywhere.
Tensor RandomMatrix(DType dtype, int64_t rows, int64_t cols, float bound, uint64_t seed);

// A matrix that others write into. All of its pages are mapped.
class OutputMatrix {
 public:
  OutputMatrix(DType dtype, int64_t rows, int64_t cols);

  MutableMatrixView view() { return {dtype_, rows_, cols_, buffer_.data()}; }
  MatrixView read() const { return {dtype_, rows_, cols_, buffer_.data()}; }

 private:
  const DType dtype_;
  const int64_t rows_;
  const int64_t cols_;
  AlignedBuffer buffer_;
};

// Both factors of a module that maps `features` to `features`, with entries of the size that
// trained ones have.
struct Factors {
  // The same ones for the same seed everywhere.
  Factors(DType dtype, int64_t features, int64_t rank, uint64_t seed = 1);

  MatrixView a_view() const { return AsMatrix(a); }
  MatrixView b_view() const { return AsMatrix(b); }

  Tensor a;
  Tensor b;
  double scale = 2;  // alpha / rank as most configs have it
};

// "bf16"
std::string LowerName(DType dtype);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_DATA_H_
