#include "core/compute/reference.h"

#include "core/tensor/convert.h"

namespace adapterd {
namespace {

std::vector<double> Widen(const MatrixView& matrix) {
  std::vector<float> values(matrix.rows * matrix.cols);
  ConvertToF32(matrix.dtype, matrix.data, values.data(), matrix.rows * matrix.cols);
  return {values.begin(), values.end()};
}

}  // namespace

std::vector<double> ReferenceDelta(const MatrixView& input, std::span<const ReferenceTerm> terms,
                                   int64_t out_features) {
  std::vector<double> delta(input.rows * out_features, 0.0);
  const std::vector<double> x = Widen(input);
  for (const ReferenceTerm& term : terms) {
    const std::vector<double> a = Widen(term.a);
    const std::vector<double> b = Widen(term.b);
    const int64_t rank = term.a.rows;
    for (int64_t row = 0; row < input.rows; ++row) {
      for (int64_t r = 0; r < rank; ++r) {
        double low_rank = 0;
        for (int64_t i = 0; i < input.cols; ++i) {
          low_rank += a[r * input.cols + i] * x[row * input.cols + i];
        }
        low_rank *= term.factor;
        for (int64_t o = 0; o < out_features; ++o) {
          delta[row * out_features + o] += low_rank * b[o * rank + r];
        }
      }
    }
  }
  return delta;
}

std::vector<double> ReferenceWeightDelta(std::span<const ReferenceTerm> terms, int64_t out_features,
                                         int64_t in_features) {
  std::vector<double> delta(out_features * in_features, 0.0);
  for (const ReferenceTerm& term : terms) {
    const std::vector<double> a = Widen(term.a);
    const std::vector<double> b = Widen(term.b);
    const int64_t rank = term.a.rows;
    for (int64_t o = 0; o < out_features; ++o) {
      for (int64_t i = 0; i < in_features; ++i) {
        double sum = 0;
        for (int64_t r = 0; r < rank; ++r) sum += b[o * rank + r] * a[r * in_features + i];
        delta[o * in_features + i] += term.factor * sum;
      }
    }
  }
  return delta;
}

}  // namespace adapterd
