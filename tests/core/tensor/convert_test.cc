#include "core/tensor/convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/core/tensor/float_format.h"

namespace adapterd {
namespace {

// One of the two narrow types with its code and its reference, so that each test covers both.
struct Narrow {
  const char* name;
  DType dtype;
  FloatFormat format;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
};

class ConvertTest : public ::testing::TestWithParam<Narrow> {
 protected:
  static const Narrow& type() { return GetParam(); }

  // NaNs must stay NaNs of the same sign and leading payload, made quiet.
  static uint16_t QuietNan(uint32_t bits) {
    const int shift = 23 - type().format.fraction_bits;
    const auto payload =
        static_cast<uint16_t>((bits & 0x7fffff) >> shift) | type().format.quiet_bit();
    return static_cast<uint16_t>((bits >> 16 & 0x8000) | type().format.infinity() | payload);
  }

  static uint16_t Expected(float value) {
    if (std::isnan(value)) return QuietNan(std::bit_cast<uint32_t>(value));
    return type().format.Encode(value);
  }
};

TEST_P(ConvertTest, WidensEveryValueExactly) {
  for (uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float wide = type().widen(bits);
    if (type().format.IsNan(bits)) {
      ASSERT_TRUE(std::isnan(wide)) << bits;
      ASSERT_EQ(std::signbit(wide), (bits & 0x8000) != 0) << bits;
      continue;
    }
    const auto expected = static_cast<float>(type().format.Decode(bits));
    ASSERT_EQ(std::bit_cast<uint32_t>(wide), std::bit_cast<uint32_t>(expected)) << bits;
  }
}

TEST_P(ConvertTest, NarrowingUndoesWidening) {
  for (uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const uint16_t quiet = type().format.IsNan(bits) ? type().format.quiet_bit() : 0;
    ASSERT_EQ(type().narrow(type().widen(bits)), bits | quiet) << bits;
  }
}

TEST_P(ConvertTest, RoundsToNearestEvenAroundEveryMidpoint) {
  const auto& format = type().format;
  for (uint16_t lower = 0; lower < format.infinity(); ++lower) {
    const auto upper = static_cast<uint16_t>(lower + 1);
    // Above the largest value the step goes on as if there were one more: IEEE 754's overflow rule.
    const double step = lower + 1 == format.infinity()
                            ? format.Decode(lower) - format.Decode(lower - 1)
                            : format.Decode(upper) - format.Decode(lower);
    const auto midpoint = static_cast<float>(format.Decode(lower) + step / 2);
    const float infinity = std::numeric_limits<float>::infinity();
    const uint16_t even = lower % 2 == 0 ? lower : upper;
    ASSERT_EQ(type().narrow(midpoint), even) << lower;
    ASSERT_EQ(type().narrow(std::nextafter(midpoint, -infinity)), lower) << lower;
    ASSERT_EQ(type().narrow(std::nextafter(midpoint, infinity)), upper) << lower;
    ASSERT_EQ(type().narrow(-midpoint), even | 0x8000) << lower;
  }
}

TEST_P(ConvertTest, AgreesWithTheReferenceAllOverTheRange) {
  // A prime stride meets every exponent and, over the exponents, every pattern of low bits.
  constexpr uint64_t kStride = 4093;
  for (uint64_t i = 0; i <= 0xffffffff; i += kStride) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(i));
    ASSERT_EQ(type().narrow(value), Expected(value)) << std::hex << i;
  }
}

TEST_P(ConvertTest, AgreesWithTheReferenceAroundPowersOfTwo) {
  for (uint32_t sign : {0u, 0x80000000u}) {
    for (uint32_t exponent = 0; exponent <= 255; ++exponent) {
      for (int distance = -20; distance <= 20; ++distance) {
        const uint32_t bits = sign + (exponent << 23) + distance;
        const auto value = std::bit_cast<float>(bits);
        ASSERT_EQ(type().narrow(value), Expected(value)) << std::hex << bits;
      }
    }
  }
}

TEST_P(ConvertTest, SpecialValues) {
  const uint16_t infinity = type().format.infinity();
  EXPECT_EQ(type().narrow(0.0f), 0);
  EXPECT_EQ(type().narrow(-0.0f), 0x8000);
  EXPECT_EQ(type().narrow(std::numeric_limits<float>::infinity()), infinity);
  EXPECT_EQ(type().narrow(-std::numeric_limits<float>::infinity()), infinity | 0x8000);
  EXPECT_EQ(type().narrow(std::numeric_limits<float>::max()), infinity);
  // A NaN whose payload lies in the lost bits only must not become an infinity.
  EXPECT_TRUE(type().format.IsNan(type().narrow(std::bit_cast<float>(0x7f800001u))));
  EXPECT_TRUE(type().format.IsNan(type().narrow(std::bit_cast<float>(0xff800001u))));
}

TEST_P(ConvertTest, ArraysOfEveryShortLengthWidenLikeScalarsFromAnyAddress) {
  constexpr int64_t kLongest = 40;
  for (int64_t count = 0; count <= kLongest; ++count) {
    for (size_t skew = 0; skew < 4; ++skew) {
      std::vector<std::byte> source(skew + 2 * count);
      for (int64_t i = 0; i < count; ++i) {
        const auto bits = static_cast<uint16_t>(i * 1637 + count * 31);
        std::memcpy(source.data() + skew + 2 * i, &bits, 2);
      }
      std::vector<float> wide(skew + count + 1, 42.0f);
      ConvertToF32(type().dtype, source.data() + skew, wide.data() + skew, count);
      for (int64_t i = 0; i < count; ++i) {
        uint16_t bits;
        std::memcpy(&bits, source.data() + skew + 2 * i, 2);
        ASSERT_EQ(std::bit_cast<uint32_t>(wide[skew + i]),
                  std::bit_cast<uint32_t>(type().widen(bits)))
            << count << " " << i;
      }
      ASSERT_EQ(wide[skew + count], 42.0f) << "wrote past the end";
    }
  }
}

TEST_P(ConvertTest, ArraysOfEveryShortLengthNarrowLikeScalarsToAnyAddress) {
  constexpr int64_t kLongest = 40;
  for (int64_t count = 0; count <= kLongest; ++count) {
    for (size_t skew = 0; skew < 4; ++skew) {
      std::vector<float> source(skew + count);
      for (size_t i = 0; i < source.size(); ++i) {
        source[i] = std::bit_cast<float>(static_cast<uint32_t>(i * 0x9e3779b1u + count));
      }
      std::vector<std::byte> narrow(skew + 2 * count + 1, std::byte{0x5a});
      ConvertFromF32(source.data() + skew, type().dtype, narrow.data() + skew, count);
      for (int64_t i = 0; i < count; ++i) {
        uint16_t bits;
        std::memcpy(&bits, narrow.data() + skew + 2 * i, 2);
        ASSERT_EQ(bits, type().narrow(source[skew + i])) << count << " " << i;
      }
      ASSERT_EQ(narrow[skew + 2 * count], std::byte{0x5a}) << "wrote past the end";
    }
  }
}

TEST_P(ConvertTest, ArraysCarryEveryValueBothWays) {
  std::vector<uint16_t> all(0x10000);
  for (uint32_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  const auto* bytes = reinterpret_cast<const std::byte*>(all.data());
  std::vector<float> wide(all.size());
  ConvertToF32(type().dtype, bytes, wide.data(), static_cast<int64_t>(all.size()));
  std::vector<uint16_t> back(all.size());
  ConvertFromF32(wide.data(), type().dtype, reinterpret_cast<std::byte*>(back.data()),
                 static_cast<int64_t>(back.size()));
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(wide[i]), std::bit_cast<uint32_t>(type().widen(all[i])));
    ASSERT_EQ(back[i], type().narrow(wide[i]));
  }
}

TEST_P(ConvertTest, ArraysNarrowLikeScalarsAllOverTheRange) {
  constexpr int64_t kCount = 1024;
  constexpr uint32_t kStride = 8191;  // a prime
  std::vector<float> source(kCount);
  std::vector<uint16_t> narrow(kCount);
  for (uint64_t first = 0; first <= 0xffffffff; first += kCount * kStride) {
    for (int64_t i = 0; i < kCount; ++i) {
      source[i] = std::bit_cast<float>(static_cast<uint32_t>(first + i * kStride));
    }
    ConvertFromF32(source.data(), type().dtype, reinterpret_cast<std::byte*>(narrow.data()),
                   kCount);
    for (int64_t i = 0; i < kCount; ++i)
      ASSERT_EQ(narrow[i], type().narrow(source[i])) << source[i];
  }
}

TEST_P(ConvertTest, ArraysNarrowNansLikeScalars) {
  std::vector<float> source;
  for (uint32_t payload = 1; payload < 0x800000; payload += 509) {
    source.push_back(std::bit_cast<float>(0x7f800000u | payload));
    source.push_back(std::bit_cast<float>(0xff800000u | payload));
  }
  std::vector<uint16_t> narrow(source.size());
  ConvertFromF32(source.data(), type().dtype, reinterpret_cast<std::byte*>(narrow.data()),
                 static_cast<int64_t>(source.size()));
  for (size_t i = 0; i < source.size(); ++i) {
    ASSERT_EQ(narrow[i], QuietNan(std::bit_cast<uint32_t>(source[i])));
    ASSERT_EQ(narrow[i], type().narrow(source[i]));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Types, ConvertTest,
    ::testing::Values(Narrow{"F16", DType::kF16, kF16Format, F16ToF32, F32ToF16},
                      Narrow{"BF16", DType::kBF16, kBF16Format, BF16ToF32, F32ToBF16}),
    [](const auto& tested) { return tested.param.name; });

TEST(ConvertF32Test, KeepsEveryBit) {
  const uint32_t bits[] = {0, 0x80000000u, 1, 0x7f800000u, 0x7f800001u, 0xffc12345u, 0x3f800000u};
  float values[7];
  ConvertToF32(DType::kF32, reinterpret_cast<const std::byte*>(bits), values, 7);
  std::byte back[sizeof(bits)];
  ConvertFromF32(values, DType::kF32, back, 7);
  EXPECT_EQ(std::memcmp(back, bits, sizeof(bits)), 0);
}

TEST(ConvertF32Test, NothingIsTouchedForNoElements) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    ConvertToF32(dtype, nullptr, nullptr, 0);
    ConvertFromF32(nullptr, dtype, nullptr, 0);
    EXPECT_EQ(MaxMagnitude(dtype, nullptr, 0), 0);
  }
}

class MaxMagnitudeTest : public ::testing::TestWithParam<DType> {
 protected:
  // `count` times the largest finite value, alternating in sign, at an odd address, with `value` at
  // `index` (none when negative).
  static bool FiniteWith(float value, int64_t index, int64_t count) {
    const int64_t width = FloatBytes(GetParam());
    const float largest = GetParam() == DType::kF16    ? 65504.0f
                          : GetParam() == DType::kBF16 ? BF16ToF32(0x7f7f)
                                                       : std::numeric_limits<float>::max();
    std::vector<std::byte> data(1 + count * width);
    for (int64_t i = 0; i < count; ++i) {
      const float element = i == index ? value : (i % 2 == 0 ? largest : -largest);
      ConvertFromF32(&element, GetParam(), data.data() + 1 + i * width, 1);
    }
    return std::isfinite(MaxMagnitude(GetParam(), data.data() + 1, count));
  }
};

TEST_P(MaxMagnitudeTest, TheLargestFiniteValuesAreFinite) {
  for (int64_t count = 0; count <= 40; ++count) {
    EXPECT_TRUE(FiniteWith(0, -1, count)) << count;
  }
  EXPECT_TRUE(FiniteWith(0, -1, 10'000));
}

TEST_P(MaxMagnitudeTest, OneBadElementIsFoundAnywhere) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (float bad : {std::nanf(""), -std::nanf(""), infinity, -infinity}) {
    for (int64_t count = 1; count <= 40; ++count) {
      for (int64_t index = 0; index < count; ++index) {
        ASSERT_FALSE(FiniteWith(bad, index, count)) << bad << " " << index << " of " << count;
      }
    }
    for (int64_t index : {4095, 4096, 4097, 8191, 8192, 8999}) {
      ASSERT_FALSE(FiniteWith(bad, index, 9000)) << bad << " at " << index;
    }
  }
}

TEST_P(MaxMagnitudeTest, TheLargestIsFoundWhateverItsSign) {
  std::vector<float> values(1000, 0.25f);
  values[777] = -3;
  std::vector<std::byte> data(values.size() * FloatBytes(GetParam()));
  ConvertFromF32(values.data(), GetParam(), data.data(), 1000);
  EXPECT_EQ(MaxMagnitude(GetParam(), data.data(), 1000), 3);
  EXPECT_EQ(MaxMagnitude(GetParam(), data.data(), 777), 0.25f);
}

INSTANTIATE_TEST_SUITE_P(Types, MaxMagnitudeTest,
                         ::testing::Values(DType::kF32, DType::kF16, DType::kBF16),
                         [](const auto& tested) { return std::string(DTypeName(tested.param)); });

TEST(MaxMagnitudeBitsTest, AgreesWithTheFormatOnEvery16BitValue) {
  for (uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    std::byte bytes[2];
    std::memcpy(bytes, &bits, 2);
    for (const auto& [dtype, value] :
         {std::pair(DType::kF16, F16ToF32(bits)), std::pair(DType::kBF16, BF16ToF32(bits))}) {
      const float max = MaxMagnitude(dtype, bytes, 1);
      ASSERT_TRUE(std::isnan(value) ? std::isnan(max) : max == std::abs(value)) << i;
    }
  }
}

}  // namespace
}  // namespace adapterd
