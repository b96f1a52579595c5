// MergeWeight of what is more than a sum: replaced weights, DoRA, a result of another type.
#include <limits>

#include "core/compute/merge.h"
#include "tests/core/compute/merge_fixture.h"

namespace adapterd {
namespace {

class MergeKindsTest : public ::testing::Test {
 protected:
  absl::StatusOr<MergeStats> Merge(const TestMatrix& weight, const TestTerms& pairs,
                                   const MergeOptions& options, TestMatrix& merged,
                                   int threads = 2) {
    ThreadPool pool("compute", threads, PrepareComputeThread);
    return MergeWeight(SharedKernels(), pool, weight.view(), MergeTerms(pairs), options,
                       merged.mutable_view(), Cancellation());
  }

  // Of delta = merged exactly - weight, for a result that was rounded from nearly `exact`.
  static void ExpectStats(const TestMatrix& weight, const ExpectedOutput& expected,
                          const TestMatrix& merged, const MergeStats& stats) {
    double max_delta = 0, max_tolerance = 0, squared_deltas = 0, squared_errors = 0;
    double error_tolerance = 0;
    const int64_t cols = weight.view().cols;
    for (size_t i = 0; i < expected.exact.size(); ++i) {
      const int64_t row = static_cast<int64_t>(i) / cols;
      const int64_t col = static_cast<int64_t>(i) % cols;
      const double delta = expected.exact[i] - weight.At(row, col);
      const double error = expected.exact[i] - merged.At(row, col);
      const double tolerance = Tolerance({.exact = expected.exact[i],
                                          .magnitude = expected.magnitude[i],
                                          .roundings = expected.roundings});
      max_delta = std::max(max_delta, std::abs(delta));
      max_tolerance = std::max(max_tolerance, tolerance);
      squared_deltas += delta * delta;
      squared_errors += error * error;
      error_tolerance += tolerance * tolerance;
    }
    EXPECT_NEAR(stats.max_abs_delta, max_delta, max_tolerance + 0x1p-24 * max_delta);
    if (squared_deltas == 0) return;
    const double delta_norm = std::sqrt(squared_deltas);
    const double relative = std::sqrt(squared_errors) / delta_norm;
    EXPECT_NEAR(stats.relative_rounding_error, relative,
                2 * std::sqrt(error_tolerance) / delta_norm + 1e-5 * relative);
    EXPECT_EQ(stats.non_finite_elements, 0);
  }

  // Given in blocks of rows, none of them all rows unless there is one alone.
  static void ExpectRightInBlocks(const TestMatrix& weight, const ExpectedOutput& expected,
                                  const TestTerms& pairs, const MergeOptions& options,
                                  DType merged_type) {
    const MatrixView whole = weight.view();
    ThreadPool pool("compute", 2, PrepareComputeThread);
    const std::vector<MergeTerm> terms = MergeTerms(pairs);
    TestMatrix merged(merged_type, whole.rows, whole.cols);
    ASSERT_OK_AND_ASSIGN(WeightMerge merge, WeightMerge::Create(SharedKernels(), terms, options,
                                                                whole.rows, whole.cols));
    EXPECT_EQ(merge.NeedsNorms(),
              options.magnitude != nullptr && options.layout == WeightLayout::kInOut);
    const int64_t block = std::max<int64_t>(1, whole.rows / 3);
    for (int64_t row = 0; merge.NeedsNorms() && row < whole.rows; row += block) {
      const MatrixView rows = whole.Rows(row, std::min(block, whole.rows - row));
      ASSERT_THAT(merge.AddNorms(pool, row, rows, Cancellation()), IsOk());
    }
    for (int64_t row = 0; row < whole.rows; row += block) {
      const int64_t count = std::min(block, whole.rows - row);
      ASSERT_THAT(merge.Merge(pool, row, whole.Rows(row, count),
                              merged.mutable_view().Rows(row, count), Cancellation()),
                  IsOk());
    }
    ExpectNear(merged, expected);
    ExpectStats(weight, expected, merged, Summarise(merge.sums()));
  }

  // `base` is what the terms are added to.
  void ExpectRight(const TestMatrix& weight, const TestMatrix& base, const TestTerms& pairs,
                   const MergeOptions& options, DType merged_type) {
    SCOPED_TRACE(testing::Message()
                 << DTypeName(weight.dtype()) << " to " << DTypeName(merged_type) << " "
                 << weight.view().rows << " x " << weight.view().cols << " terms " << pairs.size()
                 << " " << LayoutName(options.layout));
    ExpectedOutput expected = ExpectedSum(base, options.layout, pairs);
    if (options.magnitude != nullptr) Rescale(expected, options, weight.view().cols);
    TestMatrix merged(merged_type, weight.view().rows, weight.view().cols, /*offset=*/1);
    ASSERT_OK_AND_ASSIGN(const MergeStats stats, Merge(weight, pairs, options, merged));
    ExpectNear(merged, expected);
    ExpectStats(weight, expected, merged, stats);
    ExpectRightInBlocks(weight, expected, pairs, options, merged_type);
    if (merged_type != weight.dtype()) return;
    TestMatrix in_place = weight;
    ASSERT_THAT(Merge(in_place, pairs, options, in_place), IsOk());
    EXPECT_TRUE(in_place == merged);
  }

  // W + D to (m / n) (W + D). An error of n moves a result by as much, relatively; it is put in
  // terms of the magnitude, which the tolerance multiplies by the roundings.
  static void Rescale(ExpectedOutput& expected, const MergeOptions& options, int64_t cols) {
    const std::vector<double> norms = ReferenceNorms(expected.exact, options.layout, cols);
    const std::vector<double> tolerances = NormTolerances(expected, options.layout, cols);
    expected.roundings += 3;  // of n, of m / n and of its product
    const double unit = static_cast<double>(expected.roundings) * UnitRoundoff(DType::kF32);
    for (size_t i = 0; i < expected.exact.size(); ++i) {
      const int64_t o =
          OutputOf(options.layout, static_cast<int64_t>(i) / cols, static_cast<int64_t>(i) % cols);
      const double gain = options.magnitude[o] / norms[o];
      const double norm_error = tolerances[o] / norms[o];
      expected.exact[i] *= gain;
      expected.magnitude[i] = std::abs(gain) * expected.magnitude[i] +
                              std::abs(expected.exact[i]) * norm_error * 1.01 / unit;
    }
  }

  void ExpectRightDora(DType type, DType factors, const PairShape& shape, WeightLayout layout) {
    const TestPair pair(factors, factors, shape, seed_ += 10, 0.75);
    const TestMatrix weight = RandomWeight(type, shape, layout, ++seed_);
    const std::vector<float> magnitude = Magnitude(shape.out_features);
    ExpectRight(weight, weight, {&pair}, {.layout = layout, .magnitude = magnitude.data()}, type);
  }

  std::vector<float> Magnitude(int64_t count) {
    const auto random = TestMatrix::Random(DType::kF32, 1, count, ++seed_, 0.3f);
    std::vector<float> values(count);
    for (int64_t i = 0; i < count; ++i) values[i] = 2 + random.At(0, i);
    return values;
  }

  uint32_t seed_ = 1;
};

TEST_F(MergeKindsTest, DoraOfAllTinyShapesAndTypesMatchesTheOracle) {
  for (const int64_t out : {1, 2, 7, 33}) {
    for (const int64_t in : {1, 2, 9, 34}) {
      for (const int64_t rank : {1, 2, 5}) {
        for (const DType factors : kFloatTypes) {
          for (const DType weight : kFloatTypes) {
            for (const WeightLayout layout : kLayouts) {
              ExpectRightDora(weight, factors, {in, rank, out}, layout);
              if (HasFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST_F(MergeKindsTest, LargeDoraMatchesTheOracle) {
  for (const DType type : kFloatTypes) {
    for (const WeightLayout layout : kLayouts) {
      ExpectRightDora(type, type, {230, 16, 410}, layout);
      ExpectRightDora(type, type, {9000, 4, 40}, layout);
      ExpectRightDora(type, type, {40, 4, 9000}, layout);
    }
  }
}

TEST_F(MergeKindsTest, DoraOfARowWithoutANormIsRefused) {
  // PEFT divides by zero here, and by infinity below, which would turn the other weights to zeros.
  TestPair pair(DType::kF32, DType::kF32, {4, 1, 3}, 5);
  pair.b = TestMatrix(DType::kF32, 3, 1);
  const std::vector<float> magnitude(3, 1);
  TestMatrix zero_row = TestMatrix::Random(DType::kF32, 3, 4, 6);
  for (int64_t col = 0; col < 4; ++col) zero_row.Set(1, col, 0);
  TestMatrix infinite = TestMatrix::Random(DType::kF32, 3, 4, 6);
  infinite.Set(1, 2, std::numeric_limits<float>::infinity());
  for (const auto& [weight, message] :
       {std::pair<const TestMatrix*, const char*>{&zero_row, "4 of 12"}, {&infinite, "3 of 12"}}) {
    TestMatrix merged(DType::kF32, 3, 4);
    MergeOptions options = {.magnitude = magnitude.data()};
    EXPECT_THAT(
        Merge(*weight, {&pair}, options, merged),
        AllOf(HasReason(Reason::kNonFiniteResult), HasMessage(testing::HasSubstr(message))));
    options.allow_non_finite = true;
    ASSERT_OK_AND_ASSIGN(const MergeStats stats, Merge(*weight, {&pair}, options, merged));
    EXPECT_EQ(stats.non_finite_elements, 4);
    for (int64_t col = 0; col < 4; ++col) {
      EXPECT_TRUE(std::isnan(merged.At(1, col)));
      EXPECT_TRUE(std::isfinite(merged.At(0, col)));
    }
  }
}

TEST_F(MergeKindsTest, AReplacementIsConvertedWithOneRounding) {
  for (const DType type : kFloatTypes) {
    for (const DType replacement_type : kFloatTypes) {
      for (const int64_t cols : {1, 7, 600, 5000}) {
        const auto weight = TestMatrix::Random(type, 40, cols, ++seed_);
        const auto replacement = TestMatrix::Random(replacement_type, 40, cols, ++seed_);
        TestMatrix expected(type, 40, cols);
        for (int64_t row = 0; row < 40; ++row) {
          for (int64_t col = 0; col < cols; ++col) {
            expected.Set(row, col, replacement.At(row, col));
          }
        }
        TestMatrix merged(type, 40, cols);
        const MergeOptions options = {.replacement = MergeReplacement{replacement.view(), {}}};
        ASSERT_OK_AND_ASSIGN(const MergeStats stats, Merge(weight, {}, options, merged));
        EXPECT_TRUE(merged == expected);
        ExpectStats(weight, ExpectedSum(replacement, WeightLayout::kOutIn, {}), merged, stats);
        if (type == replacement_type) {
          EXPECT_EQ(stats.max_abs_rounding_error, 0);
        }
      }
    }
  }
}

TEST_F(MergeKindsTest, AReplacementEqualToTheWeightIsNoDelta) {
  TestMatrix weight = TestMatrix::Random(DType::kBF16, 5, 9, 1);
  weight.SetBits(2, 3, 0x8000);  // -0
  TestMatrix merged(DType::kBF16, 5, 9);
  ASSERT_OK_AND_ASSIGN(
      const MergeStats stats,
      Merge(weight, {}, {.replacement = MergeReplacement{weight.view(), {}}}, merged));
  EXPECT_TRUE(merged == weight);
  EXPECT_EQ(stats.max_abs_delta, 0);
  EXPECT_EQ(stats.zeroed_elements, 0);
}

TEST_F(MergeKindsTest, ReplacedRowsLeaveTheOthersBitForBit) {
  // All patterns of 16 bits, among them what arithmetic would change.
  for (const DType type : {DType::kF16, DType::kBF16}) {
    TestMatrix weight(type, 256, 256);
    for (int64_t i = 0; i < 1 << 16; ++i) {
      weight.SetBits(i / 256, i % 256, static_cast<uint16_t>(i));
    }
    const std::vector<int64_t> ids = {255, 3, 70, 4};
    const auto rows = TestMatrix::Random(DType::kF32, 4, 256, 7);
    const MergeOptions options = {.replacement = MergeReplacement{rows.view(), ids}};
    TestMatrix expected = weight;
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t col = 0; col < 256; ++col) expected.Set(ids[i], col, rows.At(i, col));
    }
    TestMatrix merged(type, 256, 256);
    ASSERT_THAT(Merge(weight, {}, options, merged), IsOk());
    EXPECT_TRUE(merged == expected);
    TestMatrix in_place = weight;
    ASSERT_THAT(Merge(in_place, {}, options, in_place), IsOk());
    EXPECT_TRUE(in_place == expected);
  }
}

TEST_F(MergeKindsTest, TermsAreAddedToAReplacementBeforeTheOneRounding) {
  for (const DType type : kFloatTypes) {
    for (const DType replacement_type : kFloatTypes) {
      for (const WeightLayout layout : kLayouts) {
        const PairShape shape = {70, 5, 4500};
        const TestPair pair(DType::kBF16, DType::kF16, shape, seed_ += 10, 0.5);
        const TestPair other(DType::kF32, DType::kF32, shape, seed_ += 10, -1);
        const TestMatrix weight = RandomWeight(type, shape, layout, ++seed_);
        const TestMatrix replacement = RandomWeight(replacement_type, shape, layout, ++seed_);
        const std::vector<float> magnitude = Magnitude(shape.out_features);
        MergeOptions options = {.layout = layout,
                                .replacement = MergeReplacement{replacement.view(), {}}};
        ExpectRight(weight, replacement, {&pair}, options, type);
        ExpectRight(weight, replacement, {&pair, &other}, options, type);
        options.magnitude = magnitude.data();
        ExpectRight(weight, replacement, {&pair}, options, type);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(MergeKindsTest, TermsAreAddedToReplacedRowsToo) {
  for (const DType type : kFloatTypes) {
    for (const WeightLayout layout : kLayouts) {
      const PairShape shape = {70, 5, 90};
      const TestPair pair(DType::kBF16, DType::kF16, shape, seed_ += 10, 0.5);
      const TestMatrix weight = RandomWeight(type, shape, layout, ++seed_);
      const int64_t cols = weight.view().cols;
      const std::vector<int64_t> ids = {69, 0, 33};
      const auto rows = TestMatrix::Random(type, 3, cols, ++seed_);
      TestMatrix base = weight;
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t col = 0; col < cols; ++col) base.Set(ids[i], col, rows.At(i, col));
      }
      ExpectRight(weight, base, {&pair},
                  {.layout = layout, .replacement = MergeReplacement{rows.view(), ids}}, type);
    }
  }
}

TEST_F(MergeKindsTest, AResultOfAnotherTypeIsRoundedOnce) {
  for (const DType type : kFloatTypes) {
    for (const DType merged_type : kFloatTypes) {
      if (type == merged_type) continue;
      for (const WeightLayout layout : kLayouts) {
        const TestPair pair(DType::kBF16, DType::kBF16, {50, 3, 66}, seed_ += 10, 0.1);
        const TestMatrix weight = RandomWeight(type, {50, 3, 66}, layout, ++seed_);
        ExpectRight(weight, weight, {&pair}, {.layout = layout}, merged_type);
        ExpectRight(weight, weight, {}, {.layout = layout}, merged_type);
      }
    }
  }
}

TEST_F(MergeKindsTest, AResultTooLargeForItsTypeIsRefused) {
  TestMatrix weight = TestMatrix::Random(DType::kBF16, 4, 5, 1);
  weight.Set(2, 2, 1e30f);
  TestMatrix merged(DType::kF16, 4, 5);
  EXPECT_THAT(Merge(weight, {}, {}, merged), AllOf(HasReason(Reason::kNonFiniteResult),
                                                   HasMessage(testing::HasSubstr("1 of 20"))));
  const auto replacement = weight;
  weight = TestMatrix::Random(DType::kF16, 4, 5, 1);
  EXPECT_THAT(Merge(weight, {}, {.replacement = MergeReplacement{replacement.view(), {}}}, merged),
              HasReason(Reason::kNonFiniteResult));
}

TEST_F(MergeKindsTest, ResultsDoNotDependOnTheNumberOfThreads) {
  for (const WeightLayout layout : kLayouts) {
    const PairShape shape = {300, 16, 2333};
    const TestPair pair(DType::kBF16, DType::kBF16, shape, 5, 0.01);
    const TestMatrix weight = RandomWeight(DType::kBF16, shape, layout, 6);
    const std::vector<float> magnitude = Magnitude(shape.out_features);
    const MergeOptions options = {.layout = layout, .magnitude = magnitude.data()};
    TestMatrix expected(DType::kBF16, weight.view().rows, weight.view().cols);
    ASSERT_OK_AND_ASSIGN(const MergeStats alone, Merge(weight, {&pair}, options, expected, 1));
    for (const int threads : {2, 4}) {
      TestMatrix merged(DType::kBF16, weight.view().rows, weight.view().cols);
      ASSERT_OK_AND_ASSIGN(const MergeStats stats,
                           Merge(weight, {&pair}, options, merged, threads));
      EXPECT_TRUE(merged == expected);
      EXPECT_EQ(stats.relative_rounding_error, alone.relative_rounding_error);
    }
  }
}

}  // namespace
}  // namespace adapterd
