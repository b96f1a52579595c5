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
    for (float& value : absolute.bias) value = std::abs(value);
    return absolute;
  }

  // Gives B a bias of its own.
  void AddBias(uint32_t seed) {
    const auto values = TestMatrix::Random(DType::kF32, 1, b.view().rows, seed);
    for (int64_t o = 0; o < b.view().rows; ++o) bias.push_back(values.At(0, o));
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
  std::vector<float> bias;  // B's own; empty: none
};

using TestTerms = std::vector<const TestPair*>;

inline std::vector<ReferenceTerm> Reference(const TestTerms& terms) {
  std::vector<ReferenceTerm> reference;
  for (const TestPair* term : terms) {
    reference.push_back({term->a.view(), term->b.view(), term->factor,
                         term->bias.empty() ? nullptr : term->bias.data()});
  }
  return reference;
}

inline std::vector<double> ExactDelta(const ProjectionInput& input, const TestTerms& terms,
                                      int64_t out_features) {
  return ReferenceDelta(input, Reference(terms), out_features);
}

// Of every summand: on the way through A, the factor, B, its bias, the other terms and base_output.
inline int64_t Roundings(int64_t in_features, const TestTerms& terms) {
  int64_t roundings = in_features + 1;
  for (const TestPair* term : terms) {
    roundings += term->b.view().cols + (term->bias.empty() ? 1 : 3);
  }
  return roundings + 4;
}

// What an output should be, and what its tolerance comes from: see Summation.
struct ExpectedOutput {
  std::vector<double> exact;
  std::vector<double> magnitude;
  int64_t roundings = 0;
  DType factor = DType::kF32;
};

inline void ExpectNear(const TestMatrix& output, const ExpectedOutput& expected,
                       int64_t first_row = 0) {
  const int64_t cols = output.view().cols;
  int failures = 0;
  for (size_t i = 0; i < expected.exact.size(); ++i) {
    const int64_t row = first_row + static_cast<int64_t>(i) / cols;
    const int64_t col = static_cast<int64_t>(i) % cols;
    const double tolerance = Tolerance({.exact = expected.exact[i],
                                        .magnitude = expected.magnitude[i],
                                        .roundings = expected.roundings,
                                        .factor = expected.factor,
                                        .output = output.dtype()});
    const double actual = output.At(row, col);
    if (std::abs(actual - expected.exact[i]) <= tolerance) continue;
    if (++failures > 3) return;
    ADD_FAILURE() << "row " << row << " column " << col << " is " << actual << ", not "
                  << expected.exact[i] << " +- " << tolerance;
  }
}

// The deltas of an input, by the oracle.
inline ExpectedOutput ExpectedDelta(const ProjectionInput& input,
                                    const ProjectionInput& absolute_input, const TestTerms& terms,
                                    int64_t cols) {
  std::vector<TestPair> absolute;
  TestTerms absolute_terms;
  const auto* rows = std::get_if<MatrixView>(&input);
  bool narrow = false;
  for (const TestPair* term : terms) {
    absolute.push_back(term->Abs());
    narrow |= rows != nullptr && term->TypeFor(rows->dtype) == ComputeType::kBF16;
  }
  for (const TestPair& term : absolute) absolute_terms.push_back(&term);
  return {.exact = ExactDelta(input, terms, cols),
          .magnitude = ExactDelta(absolute_input, absolute_terms, cols),
          .roundings = Roundings(rows == nullptr ? 0 : rows->cols, terms),
          .factor = narrow ? DType::kBF16 : DType::kF32};
}

inline ExpectedOutput ExpectedDelta(const TestMatrix& input, const TestTerms& terms, int64_t cols) {
  const TestMatrix absolute = input.Abs();
  return ExpectedDelta(input.view(), absolute.view(), terms, cols);
}

// Compares rows [first, first + input.rows) of `output` with the oracle.
inline void ExpectNearOracle(const TestMatrix& input, const TestTerms& terms,
                             const TestMatrix* base, const TestMatrix& output, int64_t first = 0) {
  const int64_t cols = output.view().cols;
  ExpectedOutput expected = ExpectedDelta(input, terms, cols);
  for (size_t i = 0; base != nullptr && i < expected.exact.size(); ++i) {
    const double start = base->At(first + static_cast<int64_t>(i) / cols, i % cols);
    expected.exact[i] += start;
    expected.magnitude[i] += std::abs(start);
  }
  ExpectNear(output, expected, first);
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_COMPUTE_PROJECTION_FIXTURE_H_
