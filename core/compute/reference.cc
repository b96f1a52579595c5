#include "core/compute/reference.h"

#include <cmath>

#include "core/tensor/convert.h"

namespace adapterd {
namespace {

std::vector<double> Widen(const MatrixView& matrix) {
  std::vector<float> values(matrix.rows * matrix.cols);
  ConvertToF32(matrix.dtype, matrix.data, values.data(), matrix.rows * matrix.cols);
  return {values.begin(), values.end()};
}

int64_t RowsOf(const ProjectionInput& input) {
  const auto* ids = std::get_if<TokenIds>(&input);
  return ids == nullptr ? std::get<MatrixView>(input).rows : static_cast<int64_t>(ids->size());
}

// [rows x rank] of A x.
std::vector<double> LowRankRows(const ProjectionInput& input, const MatrixView& lora_a) {
  const int64_t rows = RowsOf(input);
  const std::vector<double> a = Widen(lora_a);
  std::vector<double> low_rank(rows * lora_a.rows, 0.0);
  if (const auto* ids = std::get_if<TokenIds>(&input)) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t r = 0; r < lora_a.rows; ++r) {
        low_rank[row * lora_a.rows + r] = a[r * lora_a.cols + (*ids)[row]];
      }
    }
    return low_rank;
  }
  const std::vector<double> x = Widen(std::get<MatrixView>(input));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t r = 0; r < lora_a.rows; ++r) {
      for (int64_t i = 0; i < lora_a.cols; ++i) {
        low_rank[row * lora_a.rows + r] += a[r * lora_a.cols + i] * x[row * lora_a.cols + i];
      }
    }
  }
  return low_rank;
}

}  // namespace

std::vector<double> ReferenceDelta(const ProjectionInput& input,
                                   std::span<const ReferenceTerm> terms, int64_t out_features) {
  const int64_t rows = RowsOf(input);
  std::vector<double> delta(rows * out_features, 0.0);
  for (const ReferenceTerm& term : terms) {
    const std::vector<double> low_rank = LowRankRows(input, term.a);
    const std::vector<double> b = Widen(term.b);
    const int64_t rank = term.a.rows;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t o = 0; o < out_features; ++o) {
        double sum = term.bias == nullptr ? 0 : term.bias[o];
        for (int64_t r = 0; r < rank; ++r) sum += low_rank[row * rank + r] * b[o * rank + r];
        delta[row * out_features + o] += term.factor * sum;
      }
    }
  }
  return delta;
}

std::vector<double> ReferenceProduct(const MatrixView& input, const MatrixView& weight,
                                     WeightLayout layout, const float* bias) {
  const bool out_in = layout == WeightLayout::kOutIn;
  const int64_t out_features = out_in ? weight.rows : weight.cols;
  const std::vector<double> x = Widen(input);
  const std::vector<double> w = Widen(weight);
  std::vector<double> product;
  for (int64_t row = 0; row < input.rows; ++row) {
    for (int64_t o = 0; o < out_features; ++o) {
      double sum = bias == nullptr ? 0 : bias[o];
      for (int64_t i = 0; i < input.cols; ++i) {
        sum += x[row * input.cols + i] * w[out_in ? o * weight.cols + i : i * weight.cols + o];
      }
      product.push_back(sum);
    }
  }
  return product;
}

std::vector<double> ReferenceDora(const MatrixView& base_output, const DoraRescale& dora,
                                  std::span<const double> delta) {
  std::vector<double> output = Widen(base_output);
  for (size_t i = 0; i < output.size(); ++i) {
    const int64_t o = static_cast<int64_t>(i) % base_output.cols;
    const double bias = dora.base_bias == nullptr ? 0 : dora.base_bias[o];
    output[i] = bias + dora.gain[o] * (output[i] - bias + delta[i]);
  }
  return output;
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

std::vector<double> ReferenceMerge(const MatrixView& weight, WeightLayout layout,
                                   std::span<const ReferenceTerm> terms) {
  const bool out_in = layout == WeightLayout::kOutIn;
  const int64_t out_features = out_in ? weight.rows : weight.cols;
  const int64_t in_features = out_in ? weight.cols : weight.rows;
  const std::vector<double> delta = ReferenceWeightDelta(terms, out_features, in_features);
  std::vector<double> merged = Widen(weight);
  for (int64_t row = 0; row < weight.rows; ++row) {
    for (int64_t col = 0; col < weight.cols; ++col) {
      const int64_t o = out_in ? row : col;
      const int64_t i = out_in ? col : row;
      merged[row * weight.cols + col] += delta[o * in_features + i];
    }
  }
  return merged;
}

std::vector<double> ReferenceNorms(std::span<const double> merged, WeightLayout layout,
                                   int64_t cols) {
  const int64_t rows = static_cast<int64_t>(merged.size()) / cols;
  std::vector<double> norms(layout == WeightLayout::kOutIn ? rows : cols, 0.0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const double value = merged[row * cols + col];
      norms[layout == WeightLayout::kOutIn ? row : col] += value * value;
    }
  }
  for (double& norm : norms) norm = std::sqrt(norm);
  return norms;
}

}  // namespace adapterd
