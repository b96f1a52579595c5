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

// Loops that compilers turn into vector code, once for each instruction set.
[[gnu::always_inline]] inline void DequantizeLoop(const std::byte* source, float* destination,
                                                  int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b, source += kQ8BlockBytes, destination += kQ8BlockElements) {
    const Block block(source);
    for (int64_t i = 0; i < kQ8BlockElements; ++i) {
      destination[i] = block.scale * static_cast<float>(block.values[i]);
    }
  }
}

[[gnu::always_inline]] inline float MaxLoop(const std::byte* source, int64_t blocks) {
  float largest = 0;
  for (int64_t b = 0; b < blocks; ++b, source += kQ8BlockBytes) {
    const Block block(source);
    if (!std::isfinite(block.scale)) return std::numeric_limits<float>::quiet_NaN();
    uint8_t most = 0;  // unsigned, for the magnitude of -128
    for (const int8_t value : block.values) {
      const auto bits = static_cast<uint8_t>(value);
      most = std::max(most, value < 0 ? static_cast<uint8_t>(-bits) : bits);
    }
    largest = std::max(largest, std::abs(block.scale) * static_cast<float>(most));
  }
  return largest;
}

struct Loops {
  void (*dequantize)(const std::byte*, float*, int64_t);
  float (*max)(const std::byte*, int64_t);
};

void DequantizePortable(const std::byte* source, float* destination, int64_t blocks) {
  DequantizeLoop(source, destination, blocks);
}
float MaxPortable(const std::byte* source, int64_t blocks) { return MaxLoop(source, blocks); }

#if defined(__x86_64__)
[[gnu::target("avx2")]] void DequantizeAvx2(const std::byte* source, float* destination,
                                            int64_t blocks) {
  DequantizeLoop(source, destination, blocks);
}
[[gnu::target("avx2")]] float MaxAvx2(const std::byte* source, int64_t blocks) {
  return MaxLoop(source, blocks);
}
#endif

const Loops& Chosen() {
#if defined(__x86_64__)
  static const Loops chosen = __builtin_cpu_supports("avx2")
                                  ? Loops{DequantizeAvx2, MaxAvx2}
                                  : Loops{DequantizePortable, MaxPortable};
#else
  static constexpr Loops chosen = {DequantizePortable, MaxPortable};
#endif
  return chosen;
}

}  // namespace

void DequantizeQ8_0(const std::byte* source, float* destination, int64_t blocks) {
  Chosen().dequantize(source, destination, blocks);
}

float MaxMagnitudeQ8_0(const std::byte* source, int64_t blocks) {
  return Chosen().max(source, blocks);
}

}  // namespace adapterd
