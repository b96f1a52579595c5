#include "core/tensor/transpose.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace adapterd {
namespace {

// Every CPU that we build for has vectors of this size; wider ones would save little.
constexpr int64_t kVectorBytes = 16;
// Of each row, before the next: a power of two between rows lets few of their lines stay cached.
constexpr int64_t kRunBytes = 64;

template <typename Word>
struct Lanes;
template <>
struct Lanes<uint16_t> {
  typedef uint16_t Vector __attribute__((vector_size(kVectorBytes)));
  static Vector Low(Vector x, Vector y) {
    return __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11);
  }
  static Vector High(Vector x, Vector y) {
    return __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
  }
};
template <>
struct Lanes<uint32_t> {
  typedef uint32_t Vector __attribute__((vector_size(kVectorBytes)));
  static Vector Low(Vector x, Vector y) { return __builtin_shufflevector(x, y, 0, 4, 1, 5); }
  static Vector High(Vector x, Vector y) { return __builtin_shufflevector(x, y, 2, 6, 3, 7); }
};

template <typename Word>
constexpr int64_t kLanes = kVectorBytes / sizeof(Word);

// A square of as many rows as a vector has lanes. Interleaving the first half of the rows with the
// second moves one bit of the row's number into the column's; once for every bit transposes.
template <typename Word>
[[gnu::always_inline]] inline void TransposeSquare(const std::byte* from, int64_t from_stride,
                                                   std::byte* to, int64_t to_stride) {
  using Vector = typename Lanes<Word>::Vector;
  constexpr int64_t kRows = kLanes<Word>;
  Vector rows[kRows];
  for (int64_t i = 0; i < kRows; ++i) {
    std::memcpy(&rows[i], from + i * from_stride, sizeof(Vector));
  }
  for (int64_t bit = 1; bit < kRows; bit *= 2) {
    Vector mixed[kRows];
    for (int64_t i = 0; i < kRows / 2; ++i) {
      mixed[2 * i] = Lanes<Word>::Low(rows[i], rows[i + kRows / 2]);
      mixed[2 * i + 1] = Lanes<Word>::High(rows[i], rows[i + kRows / 2]);
    }
    std::copy_n(mixed, kRows, rows);
  }
  for (int64_t i = 0; i < kRows; ++i) std::memcpy(to + i * to_stride, &rows[i], sizeof(Vector));
}

template <typename Word>
void TransposeOneByOne(const std::byte* from, int64_t from_stride, int64_t rows, int64_t cols,
                       std::byte* to, int64_t to_stride) {
  constexpr int64_t kBytes = sizeof(Word);
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(to + j * to_stride + i * kBytes, from + i * from_stride + j * kBytes, kBytes);
    }
  }
}

}  // namespace

template <typename Word>
void Transpose(const std::byte* from, int64_t from_stride, int64_t rows, int64_t cols,
               std::byte* to, int64_t to_stride) {
  constexpr int64_t kBytes = sizeof(Word);
  constexpr int64_t kSide = kLanes<Word>;
  const int64_t square_rows = rows / kSide * kSide;
  const int64_t square_cols = cols / kSide * kSide;
  for (int64_t col = 0; col < square_cols; col += kRunBytes / kBytes) {
    const int64_t end = std::min(square_cols, col + kRunBytes / kBytes);
    for (int64_t row = 0; row < square_rows; row += kSide) {
      for (int64_t j = col; j < end; j += kSide) {
        TransposeSquare<Word>(from + row * from_stride + j * kBytes, from_stride,
                              to + j * to_stride + row * kBytes, to_stride);
      }
    }
  }
  TransposeOneByOne<Word>(from + square_cols * kBytes, from_stride, square_rows, cols - square_cols,
                          to + square_cols * to_stride, to_stride);
  TransposeOneByOne<Word>(from + square_rows * from_stride, from_stride, rows - square_rows, cols,
                          to + square_rows * kBytes, to_stride);
}

template void Transpose<uint16_t>(const std::byte*, int64_t, int64_t, int64_t, std::byte*, int64_t);
template void Transpose<uint32_t>(const std::byte*, int64_t, int64_t, int64_t, std::byte*, int64_t);

Tensor TransposedMatrix(const Tensor& matrix) {
  const MatrixView from = AsMatrix(matrix);
  AlignedBuffer buffer(matrix.bytes().size());
  const int64_t to_stride = from.rows * FloatBytes(from.dtype);
  const auto transpose = from.dtype == DType::kF32 ? Transpose<uint32_t> : Transpose<uint16_t>;
  transpose(from.data, from.row_bytes(), from.rows, from.cols, buffer.data(), to_stride);
  return Tensor(from.dtype, {from.cols, from.rows}, std::move(buffer));
}

}  // namespace adapterd
