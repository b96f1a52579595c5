#include "core/base_model/dora_gains.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/compute/reference.h"
#include "tests/core/compute/matrices.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

constexpr int64_t kIn = 70;
constexpr int64_t kOut = 40;
constexpr int64_t kRank = 3;

class DoraGainsTest : public ::testing::Test {
 protected:
  MergeTerm term() const { return {a_.view(), b_.view(), 0.5}; }

  absl::StatusOr<Gains> Compute(const StoredWeight& weight) {
    return ComputeDoraGains(kernels_, pool_, weight, term(), magnitude_, Cancellation());
  }

  // `weight` as the matrix that it stands for, in F32.
  void ExpectRight(const StoredWeight& weight, const TestMatrix& exact) {
    const auto gains = Compute(weight);
    ASSERT_THAT(gains, IsOk());
    const ReferenceTerm reference = {a_.view(), b_.view(), 0.5};
    const std::vector<double> norms =
        ReferenceNorms(ReferenceMerge(exact.view(), weight.layout, {&reference, 1}), weight.layout,
                       exact.view().cols);
    ASSERT_EQ((*gains)->size(), norms.size());
    for (size_t o = 0; o < norms.size(); ++o) {
      EXPECT_NEAR((**gains)[o], magnitude_[o] / norms[o], 1e-6 * std::abs((**gains)[o]));
    }
  }

  Kernels kernels_;
  ThreadPool pool_{"test", 2, PrepareComputeThread};
  TestMatrix a_ = TestMatrix::Random(DType::kF32, kRank, kIn, 1);
  TestMatrix b_ = TestMatrix::Random(DType::kBF16, kOut, kRank, 2);
  std::vector<float> magnitude_ = std::vector<float>(kOut, 1.25f);
};

TEST_F(DoraGainsTest, MatchTheOracleHoweverTheWeightIsHeld) {
  for (const WeightLayout layout : {WeightLayout::kOutIn, WeightLayout::kInOut}) {
    const bool out_in = layout == WeightLayout::kOutIn;
    const int64_t rows = out_in ? kOut : kIn;
    const int64_t cols = out_in ? kIn : kOut;
    const auto weight = TestMatrix::Random(DType::kBF16, rows, cols, 3);
    ExpectRight({weight.view(), layout}, weight);

    const Nf4Matrix quantised(weight.view(), 64);
    TestMatrix dequantised(DType::kF32, rows, cols);
    quantised.DequantizeRows(0, dequantised.mutable_view());
    ExpectRight({&quantised, layout}, dequantised);

    const auto replacement = TestMatrix::Random(DType::kF32, 2, cols, 4);
    const std::vector<ReplacedRow> replaced = {{1, 1}, {rows - 1, 0}};
    TestMatrix patched(DType::kF32, rows, cols);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        const bool is_last = row == rows - 1;
        patched.Set(
            row, col,
            row == 1 || is_last ? replacement.At(is_last ? 0 : 1, col) : weight.At(row, col));
      }
    }
    ExpectRight({weight.view(), layout, replaced, replacement.view()}, patched);
  }
}

TEST_F(DoraGainsTest, ARowWithoutANormIsAnError) {
  auto weight = TestMatrix::Random(DType::kF32, kOut, kIn, 3);
  weight.Set(5, 6, std::numeric_limits<float>::infinity());
  EXPECT_THAT(Compute({weight.view()}), HasReason(Reason::kNonFiniteWeights));
}

std::shared_ptr<HostedBase> MakeBase() {
  std::vector<HostedModule> modules(2);
  modules[0].path = "a";
  modules[1].path = "b";
  return std::make_shared<HostedBase>("source", "fingerprint", BaseGeometry(), std::move(modules),
                                      Reservation());
}

Gains MakeGains(size_t size) { return std::make_shared<const std::vector<float>>(size, 1.0f); }

TEST(DoraGainCacheTest, KnowsAPlaceByRevisionModuleAndBase) {
  DoraGainCache cache;
  const auto base = MakeBase();
  const auto other = MakeBase();
  const DoraPlace place = {"r", 3, 0, base->Snapshot(0)};
  const Gains gains = MakeGains(4);
  EXPECT_EQ(cache.Find(place), nullptr);
  cache.Insert(place, gains);
  EXPECT_EQ(cache.Find(place), gains);
  EXPECT_EQ(cache.Find({"s", 3, 0, base->Snapshot(0)}), nullptr);
  EXPECT_EQ(cache.Find({"r", 4, 0, base->Snapshot(0)}), nullptr);
  EXPECT_EQ(cache.Find({"r", 3, 1, base->Snapshot(0)}), nullptr);
  EXPECT_EQ(cache.Find({"r", 3, 0, base->Snapshot(1)}), nullptr);
  EXPECT_EQ(cache.Find({"r", 3, 0, other->Snapshot(0)}), nullptr);
}

TEST(DoraGainCacheTest, AMergeIsAnotherPlaceAndSoIsTheNextOneAtItsAddress) {
  DoraGainCache cache;
  const auto base = MakeBase();
  const auto merged = [&] {
    return std::make_shared<const MergedOverlay>(std::vector<MergedAdapter>(1), Tensor(), Tensor(),
                                                 Reservation());
  };
  base->Replace({0}, {merged()});
  cache.Insert({"r", 0, 0, base->Snapshot(0)}, MakeGains(4));
  EXPECT_NE(cache.Find({"r", 0, 0, base->Snapshot(0)}), nullptr);
  EXPECT_EQ(cache.Find({"r", 0, 0, {base, base->Snapshot(0).module, nullptr}}), nullptr);
  base->Replace({0}, {merged()});
  EXPECT_EQ(cache.Find({"r", 0, 0, base->Snapshot(0)}), nullptr);
}

TEST(DoraGainCacheTest, KeepsWhatWasUsedLastAndNoBaseAlive) {
  DoraGainCache cache(/*max_bytes=*/2 * 4 * sizeof(float));
  auto base = MakeBase();
  const auto place = [&](size_t module) { return DoraPlace{"r", module, 0, base->Snapshot(0)}; };
  cache.Insert(place(0), MakeGains(4));
  cache.Insert(place(1), MakeGains(4));
  EXPECT_NE(cache.Find(place(0)), nullptr);
  cache.Insert(place(2), MakeGains(4));
  EXPECT_NE(cache.Find(place(0)), nullptr);
  EXPECT_EQ(cache.Find(place(1)), nullptr);
  cache.Insert(place(3), MakeGains(9));  // more than there is room for
  EXPECT_EQ(cache.Find(place(3)), nullptr);
  EXPECT_NE(cache.Find(place(2)), nullptr);
  const std::weak_ptr<HostedBase> watched = base;
  base.reset();
  EXPECT_TRUE(watched.expired());
}

}  // namespace
}  // namespace adapterd
