// Merges and norms of random weights, compared with the oracle.
#ifndef ADAPTERD_TESTS_CORE_COMPUTE_MERGE_FIXTURE_H_
#define ADAPTERD_TESTS_CORE_COMPUTE_MERGE_FIXTURE_H_

#include <cmath>
#include <string_view>
#include <vector>

#include "core/compute/merge.h"
#include "tests/core/compute/projection_fixture.h"

namespace adapterd {

inline constexpr WeightLayout kLayouts[] = {WeightLayout::kOutIn, WeightLayout::kInOut};

inline std::string_view LayoutName(WeightLayout layout) {
  return layout == WeightLayout::kOutIn ? "OutIn" : "InOut";
}

// Rows or columns of a weight, whichever the outputs are.
inline TestMatrix RandomWeight(DType dtype, const PairShape& shape, WeightLayout layout,
                               uint32_t seed, int64_t offset = 0) {
  const bool out_in = layout == WeightLayout::kOutIn;
  return TestMatrix::Random(dtype, out_in ? shape.out_features : shape.in_features,
                            out_in ? shape.in_features : shape.out_features, seed, 1, offset);
}

inline int64_t OutputOf(WeightLayout layout, int64_t row, int64_t col) {
  return layout == WeightLayout::kOutIn ? row : col;
}

inline std::vector<MergeTerm> MergeTerms(const TestTerms& pairs) {
  std::vector<MergeTerm> terms;
  for (const TestPair* pair : pairs) {
    terms.push_back({pair->a.view(), pair->b.view(), pair->factor});
  }
  return terms;
}

// W + D in the shape of the weight, unrounded, and what the tolerance of each element comes from.
inline ExpectedOutput ExpectedSum(const TestMatrix& weight, WeightLayout layout,
                                  const TestTerms& pairs) {
  std::vector<TestPair> absolute;
  TestTerms absolute_pairs;
  int64_t roundings = 4;
  for (const TestPair* pair : pairs) {
    absolute.push_back(pair->Abs());
    roundings += pair->a.view().rows;
  }
  for (const TestPair& pair : absolute) absolute_pairs.push_back(&pair);
  const TestMatrix absolute_weight = weight.Abs();
  return {.exact = ReferenceMerge(weight.view(), layout, Reference(pairs)),
          .magnitude = ReferenceMerge(absolute_weight.view(), layout, Reference(absolute_pairs)),
          .roundings = roundings};
}

// How far each norm of W + D may be off: as the vector of its weights is, and by the square root's
// and the sum's own roundings, which are in double.
inline std::vector<double> NormTolerances(const ExpectedOutput& sum, WeightLayout layout,
                                          int64_t cols) {
  std::vector<double> errors(sum.exact.size());
  for (size_t i = 0; i < errors.size(); ++i) {
    errors[i] = Tolerance({.exact = 0, .magnitude = sum.magnitude[i], .roundings = sum.roundings});
  }
  std::vector<double> tolerances = ReferenceNorms(errors, layout, cols);
  const std::vector<double> norms = ReferenceNorms(sum.exact, layout, cols);
  for (size_t o = 0; o < norms.size(); ++o) tolerances[o] += 1e-12 * norms[o];
  return tolerances;
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_COMPUTE_MERGE_FIXTURE_H_
