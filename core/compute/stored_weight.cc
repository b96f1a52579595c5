#include "core/compute/stored_weight.h"

#include <algorithm>

#include "core/tensor/convert.h"
#include "core/tensor/transpose.h"

namespace adapterd {
namespace {

// Of a matrix [in, out] that are brought together before they are transposed, so that the first
// cache holds them.
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileColumns = 64;

// The row of the replacement that takes the place of `row`; -1: none does.
int64_t ReplacementOf(std::span<const ReplacedRow> replaced, int64_t row) {
  const auto found = std::ranges::lower_bound(replaced, row, {}, &ReplacedRow::row);
  return found != replaced.end() && found->row == row ? found->by : -1;
}

void ReadDense(const MatrixView& matrix, int64_t row, int64_t first, int64_t count, float* to) {
  ConvertToF32(matrix.dtype, matrix.data + (row * matrix.cols + first) * FloatBytes(matrix.dtype),
               to, count);
}

}  // namespace

void StoredWeight::ReadRow(int64_t row, int64_t first, int64_t count, float* to) const {
  const int64_t by = replaced.empty() ? -1 : ReplacementOf(replaced, row);
  if (by >= 0) return ReadDense(replacement, by, first, count, to);
  if (dense() != nullptr) return ReadDense(*dense(), row, first, count, to);
  nf4()->Dequantize(row * cols() + first, count, to);
}

void StoredWeight::ReadOutputs(int64_t first, int64_t count, float* to) const {
  if (layout == WeightLayout::kOutIn) {
    for (int64_t i = 0; i < count; ++i) ReadRow(first + i, 0, cols(), to + i * cols());
    return;
  }
  float tile[kTileRows][kTileColumns];
  const int64_t stride = rows() * static_cast<int64_t>(sizeof(float));
  for (int64_t col = 0; col < count; col += kTileColumns) {
    const int64_t tile_cols = std::min(kTileColumns, count - col);
    for (int64_t row = 0; row < rows(); row += kTileRows) {
      const int64_t tile_rows = std::min(kTileRows, rows() - row);
      for (int64_t i = 0; i < tile_rows; ++i) ReadRow(row + i, first + col, tile_cols, tile[i]);
      Transpose<uint32_t>(reinterpret_cast<const std::byte*>(tile), sizeof(tile[0]), tile_rows,
                          tile_cols, reinterpret_cast<std::byte*>(to + col * rows() + row), stride);
    }
  }
}

}  // namespace adapterd
