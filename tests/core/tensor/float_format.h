// A slow reference for 16-bit floats, written in doubles and with none of the code under test.
#ifndef ADAPTERD_TESTS_CORE_TENSOR_FLOAT_FORMAT_H_
#define ADAPTERD_TESTS_CORE_TENSOR_FLOAT_FORMAT_H_

#include <cmath>
#include <cstdint>
#include <limits>

namespace adapterd {

// An IEEE 754 binary format of 16 bits: one sign bit, the exponent, the fraction.
struct FloatFormat {
  int exponent_bits;
  int fraction_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int smallest_exponent() const { return 1 - bias(); }
  uint16_t infinity() const {
    return static_cast<uint16_t>(((1 << exponent_bits) - 1) << fraction_bits);
  }
  uint16_t quiet_bit() const { return static_cast<uint16_t>(1 << (fraction_bits - 1)); }
  bool IsNan(uint16_t bits) const { return (bits & 0x7fff) > infinity(); }

  // REQUIRES: !IsNan(bits).
  double Decode(uint16_t bits) const {
    const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
    const int magnitude = bits & 0x7fff;
    if (magnitude == infinity()) return sign * std::numeric_limits<double>::infinity();
    const int exponent = magnitude >> fraction_bits;
    const int fraction = magnitude & ((1 << fraction_bits) - 1);
    if (exponent == 0) return sign * std::ldexp(fraction, smallest_exponent() - fraction_bits);
    return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias() - fraction_bits);
  }

  // Round to nearest, ties to even. REQUIRES: !isnan(value).
  uint16_t Encode(double value) const {
    const int sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::fabs(value);
    if (magnitude == 0) return static_cast<uint16_t>(sign);
    if (std::isinf(magnitude)) return static_cast<uint16_t>(sign | infinity());
    const int exponent = std::max(std::ilogb(magnitude), smallest_exponent());
    // How many steps of this binade's width: exact, so that nearbyint does the only rounding.
    const auto steps =
        static_cast<int>(std::nearbyint(std::ldexp(magnitude, fraction_bits - exponent)));
    // A normal number has 2^fraction_bits steps before its fraction, and a carry out of the
    // fraction lands in the exponent, up to infinity.
    const int bits = ((exponent - smallest_exponent()) << fraction_bits) + steps;
    return static_cast<uint16_t>(sign | std::min<int>(bits, infinity()));
  }
};

inline constexpr FloatFormat kF16Format{5, 10};
inline constexpr FloatFormat kBF16Format{8, 7};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_TENSOR_FLOAT_FORMAT_H_
