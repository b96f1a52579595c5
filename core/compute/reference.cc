#include "core/compute/reference.h"

#include "core/tensor/convert.h"

namespace adapterd {
namespace {

double At(const MatrixView& matrix, int64_t row, int64_t col) {
  float value;
  ConvertToF32(matrix.dtype, matrix.data + row * matrix.row_bytes() + col * FloatBytes(matrix.dtype),
               &value, 1);
  return value;
}

}  // namespace

std::vector<double> ReferenceDelta(const MatrixView& input, std::span<const ReferenceTerm> terms,
                                   int64_t out_features) {
  std::vector<double> delta(input.rows * out_features, 0.0);
  for (const ReferenceTerm& term : terms) {
    for (int64_t row = 0; row < input.rows; ++row) {
      for (int64_t rank = 0; rank < term.a.rows; ++rank) {
        double low_rank = 0;
        for (int64_t i = 0; i < input.cols; ++i) low_rank += At(term.a, rank, i) * At(input, row, i);
        low_rank *= term.factor;
        for (int64_t o = 0; o < out_features; ++o) {
          delta[row * out_features + o] += low_rank * At(term.b, o, rank);
        }
      }
    }
  }
  return delta;
}

std::vector<double> ReferenceWeightDelta(std::span<const ReferenceTerm> terms,
                                         int64_t out_features, int64_t in_features) {
  std::vector<double> delta(out_features * in_features, 0.0);
  for (const ReferenceTerm& term : terms) {
    for (int64_t o = 0; o < out_features; ++o) {
      for (int64_t i = 0; i < in_features; ++i) {
        double sum = 0;
        for (int64_t rank = 0; rank < term.a.rows; ++rank) {
          sum += At(term.b, o, rank) * At(term.a, rank, i);
        }
        delta[o * in_features + i] += term.factor * sum;
      }
    }
  }
  return delta;
}

}  // namespace adapterd
