#include "bench/naive.h"

#include <bit>
#include <cstdint>
#include <vector>

namespace adapterd::bench {
namespace {

// In the loops, not through the library's conversions: those are calls, and ordinary code inlines.
inline float Load(float value) { return value; }
inline float Load(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
inline void Store(float value, float& out) { out = value; }
inline void Store(float value, uint16_t& out) {
  const auto bits = std::bit_cast<uint32_t>(value);
  out = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // NaN aside
}

template <typename T>
void ProjectRow(const T* x, const MatrixView& a, const MatrixView& b, float scale,
                std::vector<float>& h, T* y) {
  const T* a_row = reinterpret_cast<const T*>(a.data);
  for (int64_t j = 0; j < a.rows; ++j, a_row += a.cols) {
    float sum = 0;
    for (int64_t k = 0; k < a.cols; ++k) sum += Load(a_row[k]) * Load(x[k]);
    h[j] = scale * sum;
  }
  const T* b_row = reinterpret_cast<const T*>(b.data);
  for (int64_t i = 0; i < b.rows; ++i, b_row += b.cols) {
    float sum = 0;
    for (int64_t j = 0; j < b.cols; ++j) sum += Load(b_row[j]) * h[j];
    Store(sum, y[i]);
  }
}

template <typename T>
void Project(const MatrixView& input, const MatrixView& a, const MatrixView& b, float scale,
             const MutableMatrixView& output) {
  std::vector<float> h(a.rows);
  for (int64_t row = 0; row < input.rows; ++row) {
    ProjectRow(reinterpret_cast<const T*>(input.data) + row * input.cols, a, b, scale, h,
               reinterpret_cast<T*>(output.data) + row * output.cols);
  }
}

}  // namespace

void NaiveProjection(const MatrixView& input, const MatrixView& a, const MatrixView& b, float scale,
                     const MutableMatrixView& output) {
  if (input.dtype == DType::kF32) {
    Project<float>(input, a, b, scale, output);
  } else {
    Project<uint16_t>(input, a, b, scale, output);
  }
}

}  // namespace adapterd::bench
