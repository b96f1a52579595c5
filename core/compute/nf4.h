// Weights in 4 bits: NormalFloat4 of QLoRA (arXiv:2305.14314, section 3 and appendix E).
#ifndef ADAPTERD_CORE_COMPUTE_NF4_H_
#define ADAPTERD_CORE_COMPUTE_NF4_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/tensor/aligned_buffer.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// What the 16 codes stand for, ascending (appendix E): quantiles of a normal distribution, scaled
// to
// [-1, 1], with an exact zero.
inline constexpr std::array<float, 16> kNf4Levels = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// A matrix of which each element is level x absmax, one rounding in F32. `block_size` consecutive
// elements of the row-major matrix share an absmax, the largest magnitude among them, also across
// the ends of rows; the last block may be shorter. Element 2i is the upper half of byte i, element
// 2i + 1 the lower one (as bitsandbytes packs them); the last byte of an odd count ends with zeros.
//
// Immutable once made; any thread may read it.
class Nf4Matrix {
 public:
  // What one holds; nullopt when an int64 cannot tell. REQUIRES: block_size >= 1.
  static std::optional<int64_t> BytesFor(int64_t rows, int64_t cols, int64_t block_size);

  // Every element becomes the level that is nearest to it, of two equally near the lower one; a
  // block of zeros becomes zeros. REQUIRES: block_size >= 1; all elements are finite. Cost: about
  // 2 ns an element, on the calling thread; no memory but its own.
  Nf4Matrix(const MatrixView& weight, int64_t block_size);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t block_size() const { return block_size_; }
  int64_t bytes() const { return static_cast<int64_t>(codes_.size() + absmax_.size()); }

  // The Frobenius norm of what was lost over that of the weight; 0 when that is zero.
  double error() const { return error_; }

  // Elements [first, first + count) in row-major order. Cost: about as copying F32.
  void Dequantize(int64_t first, int64_t count, float* to) const;

  // Rows [first_row, first_row + rows.rows), rounded once more unless they are F32. REQUIRES: as
  // many columns.
  void DequantizeRows(int64_t first_row, const MutableMatrixView& rows) const;

  // As stored.
  std::span<const std::byte> codes() const { return codes_.span(); }
  std::span<const float> absmax() const {
    return {reinterpret_cast<const float*>(absmax_.data()), absmax_.size() / sizeof(float)};
  }

 private:
  int64_t rows_;
  int64_t cols_;
  int64_t block_size_;
  AlignedBuffer codes_;
  AlignedBuffer absmax_;
  double error_ = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_NF4_H_
