#include "core/tensor/q8_0.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/tensor/convert.h"

namespace adapterd {
namespace {

struct Block {
  explicit Block(const std::byte* source) {
    uint16_t bits = 0;
    std::memcpy(&bits, source, sizeof(bits));
    scale = F16ToF32(bits);
    std::memcpy(values, source + sizeof(bits), sizeof(values));
  }

  float scale;
  int8_t values[kQ8BlockElements];
};

}  // namespace

void DequantizeQ8_0(const std::byte* source, float* destination, int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b, source += kQ8BlockBytes, destination += kQ8BlockElements) {
    const Block block(source);
    for (int64_t i = 0; i < kQ8BlockElements; ++i) {
      destination[i] = block.scale * static_cast<float>(block.values[i]);
    }
  }
}

float MaxMagnitudeQ8_0(const std::byte* source, int64_t blocks) {
  float largest = 0;
  for (int64_t b = 0; b < blocks; ++b, source += kQ8BlockBytes) {
    const Block block(source);
    if (!std::isfinite(block.scale)) return std::numeric_limits<float>::quiet_NaN();
    int most = 0;
    for (const int8_t value : block.values) most = std::max(most, std::abs(int{value}));
    largest = std::max(largest, std::abs(block.scale) * static_cast<float>(most));
  }
  return largest;
}

}  // namespace adapterd
