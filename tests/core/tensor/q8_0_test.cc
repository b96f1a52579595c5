// Every scale with every byte, against the definition in double precision.
#include "core/tensor/q8_0.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/tensor/convert.h"

namespace adapterd {
namespace {

std::vector<std::byte> BlockOf(uint16_t scale, int first) {
  std::vector<std::byte> block(kQ8BlockBytes);
  std::memcpy(block.data(), &scale, sizeof(scale));
  for (int i = 0; i < kQ8BlockElements; ++i) {
    block[2 + i] = static_cast<std::byte>(static_cast<int8_t>(first + i));
  }
  return block;
}

TEST(Q8Test, EveryProductIsExact) {
  for (uint32_t scale = 0; scale < 0x10000; ++scale) {
    const float d = F16ToF32(static_cast<uint16_t>(scale));
    if (!std::isfinite(d)) continue;
    for (int first = -128; first < 128; first += 32) {
      const auto block = BlockOf(static_cast<uint16_t>(scale), first);
      float values[kQ8BlockElements];
      DequantizeQ8_0(block.data(), values, 1);
      double most = 0;
      for (int i = 0; i < kQ8BlockElements; ++i) {
        const double exact = static_cast<double>(d) * (first + i);
        ASSERT_EQ(values[i], exact) << scale << " " << first + i;
        most = std::max(most, std::abs(exact));
      }
      ASSERT_EQ(MaxMagnitudeQ8_0(block.data(), 1), most) << scale << " " << first;
    }
  }
}

TEST(Q8Test, AScaleThatIsNoNumberIsSeenEvenOverZeros) {
  for (const uint16_t scale : {0x7c00, 0xfc00, 0x7e00, 0x7c01}) {
    std::vector<std::byte> blocks(2 * kQ8BlockBytes);
    std::memcpy(blocks.data() + kQ8BlockBytes, &scale, sizeof(scale));
    EXPECT_TRUE(std::isnan(MaxMagnitudeQ8_0(blocks.data(), 2))) << scale;
  }
  EXPECT_EQ(MaxMagnitudeQ8_0(nullptr, 0), 0);
}

}  // namespace
}  // namespace adapterd
