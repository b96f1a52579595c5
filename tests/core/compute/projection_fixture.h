// Projections of random matrices, compared with the oracle.
#ifndef ADAPTERD_TESTS_CORE_COMPUTE_PROJECTION_FIXTURE_H_
#define ADAPTERD_TESTS_CORE_COMPUTE_PROJECTION_FIXTURE_H_

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/compute/projection.h"
#include "core/compute/reference.h"
#include "tests/core/compute/matrices.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tolerance.h"

namespace adapterd {

// Kernels compile code for each shape; one instance serves all tests.
inline const Kernels& SharedKernels() {
  static const Kernels& kernels = *new Kernels;
  return kernels;
}

// The factors of one module of one adapter.
struct TestPair {
  TestPair(DType a_type, DType b_type, const PairShape& shape, uint32_t seed, double scale = 1)
      : a(TestMatrix::Random(a_type, shape.rank, shape.in_features, seed)),
        b(TestMatrix::Random(b_type, shape.out_features, shape.rank, seed + 1)),
        factor(scale) {}

  TestPair Abs() const {
    TestPair absolute = *this;
    absolute.a = a.Abs();
    absolute.b = b.Abs();
    absolute.factor = std::abs(factor);
    return absolute;
  }

  ComputeType TypeFor(DType input) const {
    return SharedKernels().ComputeTypeFor(input, a.dtype(), b.dtype());
  }
  std::unique_ptr<const PackedPair> Pack(DType input) const {
    auto pair = PackedPair::Pack(SharedKernels(), a.view(), b.view(), TypeFor(input));
    EXPECT_THAT(pair, IsOk());
    return *std::move(pair);
  }

  TestMatrix a;
  TestMatrix b;
  double factor;
};

using TestTerms = std::vector<const TestPair*>;

inline std::vector<double> ExactDelta(const MatrixView& input, const TestTerms& terms,
                                      int64_t out_features) {
  std::vector<ReferenceTerm> reference;
  for (const TestPair* term : terms) {
    reference.push_back({term->a.view(), term->b.view(), term->factor});
  }
  return ReferenceDelta(input, reference, out_features);
}

// Of every summand: on the way through A, the factor, B, the other terms and base_output.
inline int64_t Roundings(int64_t in_features, const TestTerms& terms) {
  int64_t roundings = in_features + 1;
  for (const TestPair* term : terms) roundings += term->b.view().cols + 1;
  return roundings + 4;
}

// Compares rows [first, first + input.rows) of `output` with the oracle.
inline void ExpectNearOracle(const TestMatrix& input, const TestTerms& terms,
                             const TestMatrix* base, const TestMatrix& output, int64_t first = 0) {
  const int64_t cols = output.view().cols;
  const std::vector<double> exact = ExactDelta(input.view(), terms, cols);
  std::vector<TestPair> absolute;
  TestTerms absolute_terms;
  bool narrow = false;
  for (const TestPair* term : terms) {
    absolute.push_back(term->Abs());
    narrow |= term->TypeFor(input.dtype()) == ComputeType::kBF16;
  }
  for (const TestPair& term : absolute) absolute_terms.push_back(&term);
  const TestMatrix absolute_input = input.Abs();
  const std::vector<double> magnitude = ExactDelta(absolute_input.view(), absolute_terms, cols);
  int failures = 0;
  for (int64_t row = 0; row < input.view().rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const double start = base == nullptr ? 0 : base->At(first + row, col);
      const Summation sum = {.exact = exact[row * cols + col] + start,
                             .magnitude = magnitude[row * cols + col] + std::abs(start),
                             .roundings = Roundings(input.view().cols, terms),
                             .factor = narrow ? DType::kBF16 : DType::kF32,
                             .output = output.dtype()};
      const double actual = output.At(first + row, col);
      if (std::abs(actual - sum.exact) <= Tolerance(sum)) continue;
      if (++failures > 3) return;
      ADD_FAILURE() << "row " << first + row << " column " << col << " is " << actual << ", not "
                    << sum.exact << " +- " << Tolerance(sum);
    }
  }
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_COMPUTE_PROJECTION_FIXTURE_H_
