#include "bench/data.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/tensor/convert.h"

namespace adapterd::bench {
namespace {

constexpr float kTrainedB = 0.01f;

// Weyl sequence and mix of SplitMix64: any generator would do, this one is the same everywhere.
uint64_t NextRandom(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

Tensor RandomMatrix(DType dtype, int64_t rows, int64_t cols, float bound, uint64_t seed) {
  const int64_t count = rows * cols;
  std::vector<float> values(count);
  for (float& value : values) {
    const auto unit = static_cast<float>(NextRandom(seed) >> 40) * 0x1p-23f - 1;
    value = bound * unit;
  }
  AlignedBuffer buffer(count * FloatBytes(dtype));
  ConvertFromF32(values.data(), dtype, buffer.data(), count);
  return Tensor(dtype, {rows, cols}, std::move(buffer));
}

OutputMatrix::OutputMatrix(DType dtype, int64_t rows, int64_t cols)
    : dtype_(dtype), rows_(rows), cols_(cols), buffer_(rows * cols * FloatBytes(dtype)) {
  std::memset(buffer_.data(), 0, buffer_.size());
}

Factors::Factors(DType dtype, int64_t features, int64_t rank, uint64_t seed)
    : a(RandomMatrix(dtype, rank, features, 1 / std::sqrt(static_cast<float>(features)),
                     2 * seed - 1)),
      b(RandomMatrix(dtype, features, rank, kTrainedB, 2 * seed)) {}

std::string LowerName(DType dtype) {
  std::string name(DTypeName(dtype));
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return name;
}

}  // namespace adapterd::bench
