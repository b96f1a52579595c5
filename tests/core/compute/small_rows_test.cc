// Our own loops against sums of doubles, one by one and through ApplyProjection beside oneDNN's.
#include "core/compute/small_rows.h"

#include <limits>
#include <vector>

#include "core/compute/onednn.h"
#include "core/compute/packed_matrix.h"
#include "tests/core/compute/projection_fixture.h"

namespace adapterd {
namespace {

// A product of random matrices with every gap around its destination filled, to be found unchanged.
class SmallProductTest : public ::testing::TestWithParam<ComputeType> {
 protected:
  static constexpr float kUntouched = 42;

  SmallProductTest() : loops_(SharedKernels().impl().small_rows(GetParam())) {}

  void SetUp() override {
    if (loops_.max_rows == 0) GTEST_SKIP() << "this CPU has none";
  }

  int64_t most_rows() const { return std::max(loops_.max_rows, loops_.max_f16_rows); }
  DType type() const { return GetParam() == ComputeType::kBF16 ? DType::kBF16 : DType::kF32; }

  // Panels of this many columns, as pairs are packed; 0: row-major.
  void ExpectRight(int64_t rows, int64_t k, int64_t n, int64_t panel, bool accumulate, bool narrow,
                   bool f16_weights = false) {
    SCOPED_TRACE(testing::Message()
                 << rows << " x " << k << " x " << n << " panel " << panel
                 << (accumulate ? " accumulate" : "") << (narrow ? " narrow" : "")
                 << (f16_weights ? " F16 weights" : ""));
    const MatrixPlan plan = {GetParam(), k, n, panel, n, f16_weights};
    const auto transposed = TestMatrix::Random(f16_weights ? DType::kF16 : type(), n, k, ++seed_);
    ASSERT_OK_AND_ASSIGN(const PackedMatrix weights,
                         PackedMatrix::Transposed(plan, transposed.view()));
    const int64_t source_stride = k + 3;
    TestMatrix source = TestMatrix::Random(type(), rows, source_stride, ++seed_);
    for (int64_t row = 0; row < rows; ++row) {  // beyond a row lies what no sum may touch
      for (int64_t col = k; col < source_stride; ++col) {
        source.Set(row, col, std::numeric_limits<float>::quiet_NaN());
      }
    }
    const DType to = narrow ? DType::kBF16 : DType::kF32;
    const int64_t destination_stride = n + 5;
    TestMatrix destination = TestMatrix::Filled(to, rows, destination_stride, kUntouched);
    loops_.multiply({.rows = rows,
                     .k = k,
                     .n = n,
                     .source = source.data(),
                     .source_stride = source_stride,
                     .weights = weights.At(0),
                     .weights_are_f16 = f16_weights,
                     .panel = panel == 0 ? n : panel,
                     .stored_k = plan.stored_k(),
                     .destination = destination.data(),
                     .destination_stride = destination_stride,
                     .accumulate = accumulate,
                     .narrow = narrow});
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t col = 0; col < destination_stride; ++col) {
        double exact = accumulate || col >= n ? kUntouched : 0;
        double magnitude = std::abs(exact);
        for (int64_t i = 0; col < n && i < k; ++i) {
          const double product = double{source.At(row, i)} * transposed.At(col, i);
          exact += product;
          magnitude += std::abs(product);
        }
        const double tolerance = Tolerance({.exact = exact,
                                            .magnitude = col < n ? magnitude : 0,
                                            .roundings = k + 8,
                                            .factor = DType::kF32,
                                            .output = col < n ? to : DType::kF32});
        ASSERT_NEAR(destination.At(row, col), exact, tolerance) << row << " " << col;
      }
    }
  }

  // Each shape with one of the forms, in turn.
  void ExpectRightInTurn(int64_t rows, int64_t k, int64_t n, int64_t panel) {
    const bool narrow = GetParam() == ComputeType::kBF16 && turn_ % 3 == 2;
    const bool f16_weights =
        GetParam() == ComputeType::kF32 && (turn_ % 2 == 1 || rows > loops_.max_rows);
    ExpectRight(rows, k, n, panel, turn_ % 3 == 1, narrow, f16_weights);
    ++turn_;
  }

  const SmallRows& loops_;
  uint32_t seed_ = 1;
  int turn_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Types, SmallProductTest,
                         ::testing::Values(ComputeType::kF32, ComputeType::kBF16),
                         [](const auto& type) {
                           return type.param == ComputeType::kF32 ? "F32" : "BF16";
                         });

TEST_P(SmallProductTest, EveryTinyShapeIsRight) {
  for (int64_t rows = 1; rows <= most_rows(); ++rows) {
    for (int64_t k = 1; k <= 20; ++k) {
      for (const int64_t n : {1, 2, 15, 16, 17, 33, 63, 65}) {
        for (const int64_t panel : {16, 32, 48, 64}) {
          ExpectRightInTurn(rows, k, n, panel);
          if (HasFatalFailure()) return;
        }
        if (GetParam() == ComputeType::kF32) ExpectRightInTurn(rows, k, n, /*panel=*/0);
      }
    }
  }
}

TEST_P(SmallProductTest, LargeShapesAreRight) {
  for (const int64_t rows : {int64_t{1}, int64_t{2}, most_rows()}) {
    if (rows > most_rows()) continue;
    for (const int64_t k : {31, 32, 33, 64, 65, 96, 127, 160, 1000, 4096}) {
      for (const int64_t n : {8, 16, 64, 100, 200, 1000}) {
        if (k * n > 300'000) continue;  // the oracle takes its time
        for (const int64_t panel : {16, 32, 48, 64}) {
          ExpectRightInTurn(rows, k, n, panel);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

class KernelChoiceTest : public ::testing::TestWithParam<KernelChoice> {};

INSTANTIATE_TEST_SUITE_P(Choices, KernelChoiceTest,
                         ::testing::Values(KernelChoice::kFastest, KernelChoice::kOneDnn),
                         [](const auto& choice) {
                           return choice.param == KernelChoice::kFastest ? "Fastest" : "OneDnn";
                         });

TEST_P(KernelChoiceTest, EveryTinyProjectionIsRight) {
  const Kernels kernels(GetParam());
  ThreadPool pool("compute", 2, PrepareComputeThread);
  uint32_t seed = 1;
  for (const DType type : kFloatTypes) {
    for (int64_t rank = 1; rank <= 20; ++rank) {
      for (const auto& [in, out] : {std::pair{1, 1}, {7, 65}, {33, 3}, {65, 129}}) {
        const TestPair pair(type, type, {in, rank, out}, seed += 10, 0.75);
        const auto packed = pair.Pack(type);
        for (int64_t rows = 1; rows <= 20; ++rows) {
          SCOPED_TRACE(testing::Message() << DTypeName(type) << " " << rows << " x " << in
                                          << " rank " << rank << " to " << out);
          const auto input = TestMatrix::Random(type, rows, in, ++seed);
          TestMatrix output(type, rows, out);
          ProjectionTarget target;
          target.segments = {{rows, {{packed.get(), pair.factor}}}};
          target.output = output.mutable_view();
          ASSERT_THAT(ApplyProjection(kernels, pool, input.view(), {&target, 1}, Cancellation()),
                      IsOk());
          ExpectNearOracle(input, {&pair}, nullptr, output);
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST(KernelsWithOneDnnTest, OneDnnAloneHasNoLoopsOfOurOwn) {
  const Kernels kernels(KernelChoice::kOneDnn);
  for (const ComputeType type : {ComputeType::kF32, ComputeType::kBF16}) {
    EXPECT_EQ(kernels.impl().small_rows(type).max_rows, 0);
    EXPECT_EQ(kernels.impl().small_rows(type).max_f16_rows, 0);
  }
}

}  // namespace
}  // namespace adapterd
