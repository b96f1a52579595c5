// DoraNorms against the oracle: shapes, types, layouts, blocks, threads.
#include "core/compute/dora_norms.h"

#include <limits>

#include "tests/core/compute/merge_fixture.h"

namespace adapterd {
namespace {

class DoraNormsTest : public ::testing::Test {
 protected:
  // `block` rows of the weight at a time.
  std::vector<double> Norms(const TestMatrix& weight, WeightLayout layout, const TestPair& pair,
                            int64_t block, int threads = 2) {
    ThreadPool pool("compute", threads, PrepareComputeThread);
    const MatrixView rows = weight.view();
    auto norms =
        DoraNorms::Create(SharedKernels(), MergeTerms({&pair})[0], layout, rows.rows, rows.cols);
    EXPECT_THAT(norms, IsOk());
    for (int64_t row = 0; row < rows.rows; row += block) {
      EXPECT_THAT(
          norms->Add(pool, row, rows.Rows(row, std::min(block, rows.rows - row)), Cancellation()),
          IsOk());
    }
    return norms->Finish();
  }

  void ExpectRight(DType type, const TestPair& pair, WeightLayout layout, int64_t block) {
    const PairShape shape = {pair.a.view().cols, pair.a.view().rows, pair.b.view().rows};
    SCOPED_TRACE(testing::Message()
                 << DTypeName(type) << " " << shape.in_features << " rank " << shape.rank << " out "
                 << shape.out_features << " " << LayoutName(layout) << " blocks of " << block);
    const TestMatrix weight = RandomWeight(type, shape, layout, ++seed_, /*offset=*/1);
    const std::vector<double> actual = Norms(weight, layout, pair, block);
    const ExpectedOutput sum = ExpectedSum(weight, layout, {&pair});
    const std::vector<double> exact = ReferenceNorms(sum.exact, layout, weight.view().cols);
    const std::vector<double> tolerances = NormTolerances(sum, layout, weight.view().cols);
    ASSERT_EQ(actual.size(), exact.size());
    for (size_t o = 0; o < exact.size(); ++o) {
      ASSERT_NEAR(actual[o], exact[o], tolerances[o]) << "output " << o;
    }
  }

  uint32_t seed_ = 1;
};

TEST_F(DoraNormsTest, AllTinyShapesAndTypesMatchTheOracle) {
  for (const int64_t out : {1, 2, 7, 33}) {
    for (const int64_t in : {1, 2, 9, 34}) {
      for (const int64_t rank : {1, 2, 5, 9}) {
        for (const DType factors : kFloatTypes) {
          const TestPair pair(factors, factors, {in, rank, out}, seed_ += 10, 0.75);
          for (const DType weight : kFloatTypes) {
            for (const WeightLayout layout : kLayouts) {
              for (const int64_t block : {1, 3, 40}) {
                ExpectRight(weight, pair, layout, block);
                if (HasFailure()) return;
              }
            }
          }
        }
      }
    }
  }
}

TEST_F(DoraNormsTest, LargeShapesMatchTheOracle) {
  for (const DType type : kFloatTypes) {
    const TestPair pair(type, type, {230, 16, 410}, seed_ += 10, 0.1);
    const TestPair wide(type, type, {9000, 4, 40}, seed_ += 10);
    const TestPair tall(type, type, {40, 4, 9000}, seed_ += 10);
    for (const WeightLayout layout : kLayouts) {
      ExpectRight(type, pair, layout, 1 << 20);
      ExpectRight(type, pair, layout, 100);
      ExpectRight(type, wide, layout, 2000);
      ExpectRight(type, tall, layout, 2000);
    }
  }
}

TEST_F(DoraNormsTest, NothingIsAddedToANorm) {
  TestPair pair(DType::kF32, DType::kF32, {2, 1, 3}, 5);
  pair.a = TestMatrix::Filled(DType::kF32, 1, 2, 1);
  pair.b = TestMatrix(DType::kF32, 3, 1);
  TestMatrix weight(DType::kF32, 3, 2);
  weight.Set(1, 0, 3e-30f);  // its square is no F32
  weight.Set(1, 1, 4e-30f);
  weight.Set(2, 0, 3e30f);
  weight.Set(2, 1, 4e30f);
  pair.b.Set(0, 0, -1);
  weight.Set(0, 0, 1);  // cancelled by the delta
  weight.Set(0, 1, 1);
  const std::vector<double> norms = Norms(weight, WeightLayout::kOutIn, pair, 3);
  EXPECT_EQ(norms[0], 0);
  EXPECT_NEAR(norms[1] / 5e-30, 1, 1e-6);
  EXPECT_NEAR(norms[2] / 5e30, 1, 1e-6);
}

TEST_F(DoraNormsTest, ResultsDoNotDependOnTheNumberOfThreads) {
  const TestPair pair(DType::kBF16, DType::kBF16, {300, 16, 2333}, 5, 0.01);
  for (const WeightLayout layout : kLayouts) {
    const TestMatrix weight = RandomWeight(DType::kBF16, {300, 16, 2333}, layout, 6);
    const std::vector<double> expected = Norms(weight, layout, pair, 1 << 20, 1);
    for (const int threads : {2, 4}) {
      EXPECT_EQ(Norms(weight, layout, pair, 1 << 20, threads), expected);
    }
  }
}

TEST_F(DoraNormsTest, ACancelledAddStops) {
  const TestPair pair(DType::kF32, DType::kF32, {8, 2, 8}, 5);
  const auto weight = TestMatrix::Random(DType::kF32, 8, 8, 6);
  ThreadPool pool("compute", 2, PrepareComputeThread);
  ASSERT_OK_AND_ASSIGN(DoraNorms norms, DoraNorms::Create(SharedKernels(), MergeTerms({&pair})[0],
                                                          WeightLayout::kOutIn, 8, 8));
  Cancellation cancellation;
  cancellation.Cancel();
  EXPECT_THAT(norms.Add(pool, 0, weight.view(), cancellation),
              StatusIs(absl::StatusCode::kCancelled));
}

TEST(DoraGainsTest, AreMagnitudesOverNorms) {
  const std::vector<float> magnitude = {1, 3, -2, 0, 1e-30f};
  const std::vector<double> norms = {2, 9, 0.5, 4, 1e-60};
  const std::vector<float> gains = DoraGains(magnitude, norms);
  EXPECT_EQ(gains[0], 0.5f);
  EXPECT_EQ(gains[1], 1.0f / 3);
  EXPECT_EQ(gains[2], -4.0f);
  EXPECT_EQ(gains[3], 0.0f);
  EXPECT_NEAR(gains[4], 1e30, 1e24);
}

TEST(DoraGainsTest, OfRowsWithoutANormAreNotANumber) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const std::vector<float> magnitude = {1, 0, 1, 1};
  const std::vector<double> norms = {0, 0, kInf, std::nan("")};
  for (const float gain : DoraGains(magnitude, norms)) EXPECT_TRUE(std::isnan(gain));
}

}  // namespace
}  // namespace adapterd
