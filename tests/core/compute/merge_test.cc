// MergeWeight against the oracle: shapes, types, layouts, stats, special values, threads.
#include "core/compute/merge.h"

#include <limits>
#include <thread>

#include "tests/core/compute/merge_fixture.h"

namespace adapterd {
namespace {

class MergeTest : public ::testing::Test {
 protected:
  absl::StatusOr<MergeStats> Merge(const TestMatrix& weight, const TestTerms& pairs,
                                   const MergeOptions& options, TestMatrix& merged,
                                   int threads = 2) {
    ThreadPool pool("compute", threads, PrepareComputeThread);
    return MergeWeight(SharedKernels(), pool, weight.view(), MergeTerms(pairs), options,
                       merged.mutable_view(), cancellation_);
  }

  void ExpectRight(DType weight_type, const TestTerms& pairs, int64_t out, int64_t in,
                   WeightLayout layout, int64_t offset = 0) {
    SCOPED_TRACE(testing::Message() << DTypeName(weight_type) << " out " << out << " in " << in
                                    << " terms " << pairs.size() << " " << LayoutName(layout));
    const TestMatrix weight = RandomWeight(weight_type, {in, 0, out}, layout, 99, offset);
    TestMatrix merged(weight_type, weight.view().rows, weight.view().cols, offset);
    ASSERT_THAT(Merge(weight, pairs, {layout}, merged), IsOk());
    TestMatrix in_place = weight;
    ASSERT_THAT(Merge(in_place, pairs, {layout}, in_place), IsOk());
    EXPECT_TRUE(in_place == merged);
    ExpectNear(merged, ExpectedSum(weight, layout, pairs));
  }

  Cancellation cancellation_;
};

TEST_F(MergeTest, AllTinyShapesAndTypesMatchTheOracle) {
  uint32_t seed = 1;
  for (const int64_t out : {1, 2, 3, 7, 9, 33}) {
    for (const int64_t in : {1, 2, 5, 8, 9, 34}) {
      for (const int64_t rank : {1, 2, 3, 5, 9}) {
        for (const DType a : kFloatTypes) {
          for (const DType b : kFloatTypes) {
            const TestPair pair(a, b, {in, rank, out}, seed += 10, 0.75);
            for (const DType weight : kFloatTypes) {
              for (const auto layout : {WeightLayout::kOutIn, WeightLayout::kInOut}) {
                ExpectRight(weight, {&pair}, out, in, layout);
                if (HasFailure()) return;
              }
            }
          }
        }
      }
    }
  }
}

TEST_F(MergeTest, LargeShapesMatchTheOracle) {
  for (const DType type : kFloatTypes) {
    for (const int64_t rank : {16, 64, 300}) {
      const TestPair pair(type, type, {130, rank, 210}, 5, 0.1);
      ExpectRight(type, {&pair}, 210, 130, WeightLayout::kOutIn, /*offset=*/1);
      ExpectRight(type, {&pair}, 210, 130, WeightLayout::kInOut);
    }
  }
}

TEST_F(MergeTest, WeightsWiderThanAChunkMatchTheOracle) {
  const TestPair pair(DType::kBF16, DType::kBF16, {9000, 4, 9000}, 5);
  TestPair narrow(DType::kBF16, DType::kBF16, {9000, 4, 10}, 5);
  ExpectRight(DType::kBF16, {&narrow}, 10, 9000, WeightLayout::kOutIn);
  ExpectRight(DType::kBF16, {&narrow}, 10, 9000, WeightLayout::kInOut);
}

TEST_F(MergeTest, SeveralTermsAreSummedBeforeTheOneRounding) {
  const TestPair first(DType::kBF16, DType::kF16, {60, 8, 40}, 5, 0.5);
  const TestPair second(DType::kF32, DType::kF32, {60, 17, 40}, 6, -2);
  const TestPair third(DType::kF16, DType::kBF16, {60, 1, 40}, 7, 0);
  for (const DType type : kFloatTypes) {
    for (const auto layout : {WeightLayout::kOutIn, WeightLayout::kInOut}) {
      ExpectRight(type, {&first, &second, &third}, 40, 60, layout);
    }
  }
  // Two terms that cancel: rounding each of them would leave something.
  TestPair opposite = first;
  opposite.factor = -first.factor;
  const auto weight = TestMatrix::Random(DType::kBF16, 40, 60, 9);
  TestMatrix merged(DType::kBF16, 40, 60);
  ASSERT_THAT(Merge(weight, {&first, &opposite}, {}, merged), IsOk());
  for (int64_t i = 0; i < 60; ++i) {
    EXPECT_NEAR(merged.At(3, i), weight.At(3, i), 0x1p-7 * std::abs(weight.At(3, i)));
  }
}

TEST_F(MergeTest, ADeltaOfZeroChangesNoBit) {
  TestPair pair(DType::kBF16, DType::kBF16, {256, 8, 256}, 5);
  pair.b = TestMatrix(DType::kBF16, 256, 8);  // as an adapter that was never trained
  for (const DType type : {DType::kBF16, DType::kF16}) {
    TestMatrix weight(type, 256, 256);
    for (int64_t i = 0; i < 1 << 16; ++i) {
      weight.SetBits(i / 256, i % 256, static_cast<uint16_t>(i));
    }
    for (const TestTerms& terms : {TestTerms{&pair}, TestTerms{}}) {
      TestMatrix merged(type, 256, 256);
      ASSERT_OK_AND_ASSIGN(const MergeStats stats, Merge(weight, terms, {}, merged));
      EXPECT_TRUE(merged == weight);
      EXPECT_EQ(stats.max_abs_delta, 0);
      EXPECT_EQ(stats.relative_rounding_error, 0);
      EXPECT_EQ(stats.zeroed_elements, 0);
      // Infinities and NaN, with either sign.
      EXPECT_EQ(stats.non_finite_elements, type == DType::kBF16 ? 2 * 128 : 2 * 1024);
    }
  }
}

TEST_F(MergeTest, SubnormalWeightsAndDeltasAreKept) {
  TestPair pair(DType::kF32, DType::kF32, {1, 1, 1}, 5);
  pair.a.Set(0, 0, 0x1p-140f);
  pair.b.Set(0, 0, 1);
  TestMatrix weight = TestMatrix::Filled(DType::kF32, 1, 1, 0x1p-149f);
  TestMatrix merged(DType::kF32, 1, 1);
  ASSERT_OK_AND_ASSIGN(const MergeStats stats, Merge(weight, {&pair}, {}, merged));
  EXPECT_EQ(merged.At(0, 0), 0x1p-140f + 0x1p-149f);
  EXPECT_EQ(stats.max_abs_delta, 0x1p-140);
}

TEST_F(MergeTest, StatsSayWhatRoundingDid) {
  // Exact by construction: the delta is 2^-10 everywhere, in every arithmetic.
  TestPair pair(DType::kF32, DType::kF32, {64, 1, 64}, 5);
  pair.a = TestMatrix::Filled(DType::kF32, 1, 64, 0x1p-10f);
  pair.b = TestMatrix::Filled(DType::kF32, 64, 1, 1);
  const auto weight = TestMatrix::Random(DType::kBF16, 64, 64, 6);
  TestMatrix merged(DType::kBF16, 64, 64);
  ASSERT_OK_AND_ASSIGN(const MergeStats stats, Merge(weight, {&pair}, {}, merged));
  double max_error = 0, errors = 0;
  int64_t zeroed = 0;
  for (int64_t row = 0; row < 64; ++row) {
    for (int64_t col = 0; col < 64; ++col) {
      const double error = weight.At(row, col) + 0x1p-10 - merged.At(row, col);
      max_error = std::max(max_error, std::abs(error));
      errors += error * error;
      zeroed += merged.At(row, col) == weight.At(row, col) ? 1 : 0;
    }
  }
  EXPECT_EQ(stats.max_abs_delta, 0x1p-10);
  EXPECT_EQ(stats.max_abs_rounding_error, max_error);
  const double relative = std::sqrt(errors) / (64 * 0x1p-10);
  EXPECT_NEAR(stats.relative_rounding_error, relative, 1e-5 * relative);
  EXPECT_GT(zeroed, 0);
  EXPECT_EQ(stats.zeroed_elements, zeroed);
  EXPECT_EQ(stats.non_finite_elements, 0);
}

TEST_F(MergeTest, OverflowIsRefusedUnlessAllowed) {
  TestPair pair(DType::kF32, DType::kF32, {40, 1, 40}, 5);
  pair.a = TestMatrix::Filled(DType::kF32, 1, 40, 1);
  pair.b = TestMatrix::Filled(DType::kF32, 40, 1, 0);
  pair.b.Set(39, 0, 65504);
  const TestMatrix weight = TestMatrix::Filled(DType::kF16, 40, 40, 65504);
  TestMatrix merged(DType::kF16, 40, 40);
  EXPECT_THAT(
      Merge(weight, {&pair}, {}, merged),
      AllOf(HasReason(Reason::kNonFiniteResult), HasMessage(testing::HasSubstr("40 of 1600"))));
  ASSERT_OK_AND_ASSIGN(const MergeStats stats,
                       Merge(weight, {&pair}, {.allow_non_finite = true}, merged));
  EXPECT_EQ(stats.non_finite_elements, 40);
  EXPECT_EQ(merged.At(39, 7), std::numeric_limits<float>::infinity());
  EXPECT_EQ(merged.At(38, 7), 65504);
}

TEST_F(MergeTest, AWeightThatWasNotFiniteIsNoError) {
  const TestPair pair(DType::kF32, DType::kF32, {8, 2, 8}, 5);
  TestMatrix weight = TestMatrix::Random(DType::kBF16, 8, 8, 6);
  weight.Set(1, 1, std::numeric_limits<float>::quiet_NaN());
  weight.Set(2, 2, std::numeric_limits<float>::infinity());
  TestMatrix merged(DType::kBF16, 8, 8);
  ASSERT_OK_AND_ASSIGN(const MergeStats stats, Merge(weight, {&pair}, {}, merged));
  EXPECT_EQ(stats.non_finite_elements, 2);
  EXPECT_TRUE(std::isnan(merged.At(1, 1)));
}

TEST_F(MergeTest, ResultsAndStatsDoNotDependOnTheNumberOfThreads) {
  const TestPair pair(DType::kBF16, DType::kBF16, {200, 16, 333}, 5, 0.01);
  const auto weight = TestMatrix::Random(DType::kBF16, 333, 200, 6);
  TestMatrix expected(DType::kBF16, 333, 200);
  ASSERT_OK_AND_ASSIGN(const MergeStats alone, Merge(weight, {&pair}, {}, expected, 1));
  for (const int threads : {2, 4}) {
    TestMatrix merged(DType::kBF16, 333, 200);
    ASSERT_OK_AND_ASSIGN(const MergeStats stats, Merge(weight, {&pair}, {}, merged, threads));
    EXPECT_TRUE(merged == expected);
    EXPECT_EQ(stats.relative_rounding_error, alone.relative_rounding_error);
    EXPECT_EQ(stats.zeroed_elements, alone.zeroed_elements);
  }
}

TEST_F(MergeTest, CallersAtTheSameTimeGetTheSameResults) {
  const TestPair pair(DType::kBF16, DType::kBF16, {200, 16, 333}, 5, 0.01);
  const auto weight = TestMatrix::Random(DType::kBF16, 333, 200, 6);
  TestMatrix expected(DType::kBF16, 333, 200);
  ASSERT_THAT(Merge(weight, {&pair}, {}, expected), IsOk());
  std::vector<std::thread> callers(8);
  for (std::thread& caller : callers) {
    caller = std::thread([&] {
      TestMatrix merged(DType::kBF16, 333, 200);
      EXPECT_THAT(Merge(weight, {&pair}, {}, merged), IsOk());
      EXPECT_TRUE(merged == expected);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST_F(MergeTest, ACancelledMergeStops) {
  const TestPair pair(DType::kF32, DType::kF32, {8, 2, 8}, 5);
  TestMatrix weight = TestMatrix::Random(DType::kF32, 8, 8, 6);
  cancellation_.Cancel();
  EXPECT_THAT(Merge(weight, {&pair}, {}, weight), StatusIs(absl::StatusCode::kCancelled));
}

}  // namespace
}  // namespace adapterd
