#include "core/compute/nf4.h"

#include <algorithm>
#include <cmath>

#include "core/base/checked_math.h"
#include "core/compute/nf4_codes.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// Elements that are converted at once, so that the first cache holds them. Even: each piece of a
// block of the matrix begins where the one before ended, and only the block itself may begin odd.
constexpr int64_t kPiece = 1024;
// Sums are kept per lane: one addition waits for the one before it.
constexpr int kLanes = 8;

struct SquareSums {
  double of_weight[kLanes] = {};
  double of_error[kLanes] = {};

  void Add(const float* weight, const uint8_t* codes, float absmax, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const double value = weight[i];
      const double error = value - double{kNf4Levels[codes[i]] * absmax};
      of_weight[i % kLanes] += value * value;
      of_error[i % kLanes] += error * error;
    }
  }

  double RelativeError() const {
    double weight = 0;
    double error = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      weight += of_weight[lane];
      error += of_error[lane];
    }
    return weight == 0 ? 0 : std::sqrt(error / weight);
  }
};

// Puts codes that come one a byte to their places, two a byte, from element `first` on.
void PackCodes(const uint8_t* from, int64_t first, int64_t count, std::byte* codes) {
  int64_t i = 0;
  if (first % 2 == 1 && count > 0) codes[first / 2] |= static_cast<std::byte>(from[i++]);
  for (; i + 1 < count; i += 2) {
    codes[(first + i) / 2] = static_cast<std::byte>(from[i] << 4 | from[i + 1]);
  }
  if (i < count) codes[(first + i) / 2] = static_cast<std::byte>(from[i] << 4);
}

}  // namespace

std::optional<int64_t> Nf4Matrix::BytesFor(int64_t rows, int64_t cols, int64_t block_size) {
  const auto count = CheckedMul(rows, cols);
  if (!count) return std::nullopt;
  const int64_t blocks = *count / block_size + (*count % block_size == 0 ? 0 : 1);
  const auto absmax = CheckedMul(blocks, static_cast<int64_t>(sizeof(float)));
  return absmax ? CheckedAdd(*absmax, *count / 2 + *count % 2) : std::nullopt;
}

Nf4Matrix::Nf4Matrix(const MatrixView& weight, int64_t block_size)
    : rows_(weight.rows),
      cols_(weight.cols),
      block_size_(std::min(block_size, std::max<int64_t>(rows_ * cols_, 1))),
      codes_(static_cast<size_t>(CeilDiv(rows_ * cols_, int64_t{2}))),
      absmax_(static_cast<size_t>(CeilDiv(rows_ * cols_, block_size_)) * sizeof(float)) {
  const int64_t count = rows_ * cols_;
  const int64_t element = FloatBytes(weight.dtype);
  auto* absmax = reinterpret_cast<float*>(absmax_.data());
  const Nf4Codes& loops = FastestNf4Codes();
  constexpr uint8_t kZeroCode = 7;
  float values[kPiece];
  uint8_t codes[kPiece];
  SquareSums sums;
  for (int64_t begin = 0; begin < count; begin += block_size_) {
    const int64_t end = begin + std::min(block_size_, count - begin);
    const float largest = MaxMagnitude(weight.dtype, weight.data + begin * element, end - begin);
    *absmax++ = largest;
    const Nf4Limits limits = LimitsFor(largest);
    for (int64_t first = begin; first < end; first += kPiece) {
      const int64_t piece = std::min(kPiece, end - first);
      ConvertToF32(weight.dtype, weight.data + first * element, values, piece);
      if (largest == 0) {
        std::fill_n(codes, piece, kZeroCode);
      } else {
        loops.encode(values, piece, limits, codes);
      }
      sums.Add(values, codes, largest, piece);
      PackCodes(codes, first, piece, codes_.data());
    }
  }
  error_ = sums.RelativeError();
}

void Nf4Matrix::Dequantize(int64_t first, int64_t count, float* to) const {
  FastestNf4Codes().decode({codes_.data(), absmax().data(), block_size_}, first, count, to);
}

void Nf4Matrix::DequantizeRows(int64_t first_row, const MutableMatrixView& rows) const {
  const int64_t first = first_row * cols_;
  const int64_t count = rows.rows * cols_;
  float values[kPiece];
  for (int64_t done = 0; done < count; done += kPiece) {
    const int64_t piece = std::min(kPiece, count - done);
    Dequantize(first + done, piece, values);
    ConvertFromF32(values, rows.dtype, rows.data + done * FloatBytes(rows.dtype), piece);
  }
}

}  // namespace adapterd
