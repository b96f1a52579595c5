// How far a result of floating-point arithmetic may be from the exact one.
#ifndef ADAPTERD_TESTS_TESTING_TOLERANCE_H_
#define ADAPTERD_TESTS_TESTING_TOLERANCE_H_

#include <cmath>
#include <cstdint>

#include "core/tensor/dtype.h"

namespace adapterd {

// Half the distance between 1 and the next number: the relative error of one rounding.
constexpr double UnitRoundoff(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

// The distance between 0 and the next number.
constexpr double SmallestNumber(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-149 : dtype == DType::kF16 ? 0x1p-24 : 0x1p-133;
}

// What Tolerance has to know about one result that was summed in F32.
struct Summation {
  double exact = 0;      // the true result
  double magnitude = 0;  // the same sum with every operand replaced by its absolute value
  int64_t roundings =
      0;  // F32 roundings that a summand passes at most: its own and one per addition
  DType factor = DType::kF32;  // what a factor of every summand is rounded to on the way
  DType output = DType::kF32;  // what the sum is rounded to
};

// The largest error of a sum in any order (Higham, Accuracy and Stability of Numerical Algorithms,
// 3.1): a summand that passes n roundings of relative error u is off by gamma = n u / (1 - n u) of
// its size, so the sum by gamma times `magnitude`. A factor in a narrower type adds its own
// rounding, the output another. Products below 2^-126 may vanish: BF16 dot products flush them.
inline double Tolerance(const Summation& sum) {
  const double n = static_cast<double>(sum.roundings) * UnitRoundoff(DType::kF32);
  const double gamma = n / (1 - n);
  const double factor = sum.factor == DType::kF32 ? 0 : UnitRoundoff(sum.factor);
  const double before_output = sum.magnitude * ((1 + gamma) * (1 + factor) - 1) +
                               static_cast<double>(sum.roundings) * 0x1p-126;
  const double output = UnitRoundoff(sum.output) * (std::abs(sum.exact) + before_output) +
                        SmallestNumber(sum.output) / 2;
  return before_output + output;
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_TOLERANCE_H_
