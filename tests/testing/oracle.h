// What the arithmetic should give, by plain loops in double, and how far a right answer may be off.
#ifndef ADAPTERD_TESTS_TESTING_ORACLE_H_
#define ADAPTERD_TESTS_TESTING_ORACLE_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/testing/peft_builder.h"

namespace adapterd {

// Largest relative error of one rounding to nearest.
inline double UnitRoundoff(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

// Half of the smallest subnormal: the error of rounding what is smaller than normal numbers.
inline double SmallestRounding(DType dtype) {
  return dtype == DType::kF16 ? 0x1p-25 : dtype == DType::kF32 ? 0x1p-150 : 0x1p-134;
}

struct OracleTerm {
  const PeftModule* module = nullptr;
  double weight = 1;
};

struct OracleValue {
  double value = 0;
  double tolerance = 0;
};

// base + sum over terms of weight x scale x (B (A x))[o], rounded once to `output`. Sums are F32 in
// any order, so n additions err by n roundings of the sum of magnitudes; where input and factors
// are BF16, low-rank rows may be rounded to BF16.
inline OracleValue Project(const float* x, DType input, const std::vector<OracleTerm>& terms,
                           int64_t o, double base, DType output) {
  OracleValue result{base, 0};
  double magnitude = std::abs(base);
  int64_t additions = 4;
  for (const OracleTerm& term : terms) {
    const PeftModule& module = *term.module;
    const double factor = term.weight * module.scale;
    additions += module.in_features + module.rank + 1;
    for (int64_t r = 0; r < module.rank; ++r) {
      double low_rank = 0;
      double low_rank_magnitude = 0;
      for (int64_t i = 0; i < module.in_features; ++i) {
        const double product = static_cast<double>(module.a[r * module.in_features + i]) * x[i];
        low_rank += product;
        low_rank_magnitude += std::abs(product);
      }
      const double b = module.b[o * module.rank + r];
      result.value += factor * b * low_rank;
      magnitude += std::abs(factor * b) * low_rank_magnitude;
      if (input == DType::kBF16 && module.dtype == DType::kBF16) {
        result.tolerance += std::abs(factor * b * low_rank) * UnitRoundoff(DType::kBF16);
      }
    }
  }
  result.tolerance += static_cast<double>(additions) * UnitRoundoff(DType::kF32) * magnitude;
  result.tolerance +=
      UnitRoundoff(output) * (std::abs(result.value) + result.tolerance) + SmallestRounding(output);
  return result;
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_ORACLE_H_
