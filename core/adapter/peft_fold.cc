#include "core/adapter/peft_fold.h"

#include <cstring>
#include <utility>
#include <vector>

#include "core/tensor/convert.h"

namespace adapterd {
namespace {

Tensor NewMatrix(DType dtype, int64_t rows, int64_t cols, AlignedBuffer& buffer) {
  return Tensor(dtype, {rows, cols}, std::move(buffer));
}

std::vector<float> Floats(const Tensor& tensor) {
  const auto count = static_cast<int64_t>(tensor.bytes().size()) / FloatBytes(tensor.dtype());
  std::vector<float> values(count);
  ConvertToF32(tensor.dtype(), tensor.bytes().data(), values.data(), count);
  return values;
}

// diag(factors) M[:rows, :cols] in F32, where M has the columns of `matrix`.
Tensor ScaledRows(const Tensor& matrix, const Tensor& factors, int64_t rows, int64_t cols) {
  const std::vector<float> by_row = Floats(factors);
  const MatrixView from = AsMatrix(matrix);
  AlignedBuffer buffer(rows * cols * sizeof(float));
  auto* to = reinterpret_cast<float*>(buffer.data());
  for (int64_t row = 0; row < rows; ++row, to += cols) {
    ConvertToF32(from.dtype, from.data + row * from.row_bytes(), to, cols);
    for (int64_t i = 0; i < cols; ++i) to[i] *= by_row[row];
  }
  return NewMatrix(DType::kF32, rows, cols, buffer);
}

// Copies elements of `bytes` each: to[e][i][j] = from[i][j * experts + e], for i < rows and j <
// rank; with `transpose` to[e][j][i].
void GatherExperts(const std::byte* from, int64_t experts, int64_t rows, int64_t rank,
                   int64_t bytes, bool transpose, std::byte* to) {
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < rank; ++j) {
        const int64_t at = transpose ? (e * rank + j) * rows + i : (e * rows + i) * rank + j;
        std::memcpy(to + at * bytes, from + ((i * rank + j) * experts + e) * bytes, bytes);
      }
    }
  }
}

// [experts x rows, rank], or transposed [experts x rank, rows], of stored [rows, rank x experts].
Tensor ExpertsOfB(const Tensor& stored, const ModuleInfo& info, bool transpose) {
  const int64_t rows = stored.shape()[0];
  AlignedBuffer buffer(stored.bytes().size());
  GatherExperts(stored.bytes().data(), info.experts, rows, info.rank, FloatBytes(stored.dtype()),
                transpose, buffer.data());
  return transpose ? NewMatrix(stored.dtype(), info.experts * info.rank, rows, buffer)
                   : NewMatrix(stored.dtype(), info.experts * rows, info.rank, buffer);
}

// [experts x cols, rank] of stored [experts x rank, cols]: each expert transposed.
Tensor TransposedExpertsOfA(const Tensor& stored, const ModuleInfo& info) {
  const int64_t cols = stored.shape()[1];
  const int64_t bytes = FloatBytes(stored.dtype());
  AlignedBuffer buffer(stored.bytes().size());
  const std::byte* from = stored.bytes().data();
  for (int64_t e = 0; e < info.experts; ++e) {
    for (int64_t k = 0; k < info.rank; ++k) {
      for (int64_t i = 0; i < cols; ++i, from += bytes) {
        std::memcpy(buffer.data() + ((e * cols + i) * info.rank + k) * bytes, from, bytes);
      }
    }
  }
  return NewMatrix(stored.dtype(), info.experts * cols, info.rank, buffer);
}

}  // namespace

ModuleTensors FoldTensors(PeftMethod method, const ModuleInfo& info, bool swapped,
                          StoredTensors stored, const StoredTensors& shared) {
  const auto take = [&stored](TensorRole role) -> Tensor& {
    return stored[static_cast<size_t>(role)];
  };
  Tensor& a = take(TensorRole::kLoraA);
  Tensor& b = take(TensorRole::kLoraB);
  if (info.kind == ModuleKind::kExperts) {
    Tensor outputs = swapped ? TransposedExpertsOfA(a, info) : ExpertsOfB(b, info, false);
    if (swapped) a = ExpertsOfB(b, info, true);
    b = std::move(outputs);
  } else if (info.pairs() > 0 && method == PeftMethod::kVera) {
    const auto projection = [&shared](TensorRole role) -> const Tensor& {
      return shared[static_cast<size_t>(role)];
    };
    a = ScaledRows(projection(TensorRole::kLoraA), take(TensorRole::kLambdaD), info.rank,
                   info.in_features);
    b = ScaledRows(projection(TensorRole::kLoraB), take(TensorRole::kLambdaB), info.out_features,
                   info.rank);
  } else if (info.pairs() > 0 && method == PeftMethod::kAdaLora) {
    a = ScaledRows(a, take(TensorRole::kLoraE), info.rank, info.in_features);
  }
  return FoldNothing(std::move(stored));
}

}  // namespace adapterd
