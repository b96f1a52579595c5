// ApplyProjection of one adapter against the oracle: shapes, types, alignment, special values.
#include <limits>

#include "tests/core/compute/projection_fixture.h"

namespace adapterd {
namespace {

// What one target without segments of its own computes.
absl::Status Project(ThreadPool& pool, const TestMatrix& input, const PackedPair& pair,
                     double factor, const TestMatrix* base, TestMatrix& output) {
  ProjectionTarget target;
  target.segments = {{input.view().rows, {{&pair, factor}}}};
  if (base != nullptr) target.base_output = base->view();
  target.output = output.mutable_view();
  return ApplyProjection(SharedKernels(), pool, input.view(), {&target, 1}, Cancellation());
}

class ProjectionTest : public ::testing::Test {
 protected:
  void ExpectRight(DType input_type, DType a_type, DType b_type, DType output_type, int64_t rows,
                   const PairShape& shape, bool with_base, int64_t offset = 0) {
    const TestPair pair(a_type, b_type, shape, seed_ += 10, 0.75);
    const auto packed = pair.Pack(input_type);
    ExpectRight(pair, *packed, input_type, output_type, rows, with_base, offset);
  }

  void ExpectRight(const TestPair& pair, const PackedPair& packed, DType input_type,
                   DType output_type, int64_t rows, bool with_base, int64_t offset = 0) {
    SCOPED_TRACE(testing::Message()
                 << rows << " x " << packed.shape().in_features << " rank " << packed.shape().rank
                 << " to " << packed.shape().out_features << " " << DTypeName(input_type) << " by "
                 << DTypeName(pair.a.dtype()) << " " << DTypeName(pair.b.dtype()) << " to "
                 << DTypeName(output_type) << (with_base ? " with base" : ""));
    const auto input =
        TestMatrix::Random(input_type, rows, packed.shape().in_features, seed_ += 10, 1, offset);
    const auto base =
        TestMatrix::Random(output_type, rows, packed.shape().out_features, ++seed_, 1, offset);
    TestMatrix output(output_type, rows, packed.shape().out_features, offset);
    const TestMatrix* base_or_null = with_base ? &base : nullptr;
    ASSERT_THAT(Project(pool_, input, packed, pair.factor, base_or_null, output), IsOk());
    ExpectNearOracle(input, {&pair}, base_or_null, output);
  }

  ThreadPool pool_{"compute", 2, PrepareComputeThread};
  uint32_t seed_ = 1;
};

TEST_F(ProjectionTest, AllTinyShapesAndTypesMatchTheOracle) {
  int64_t turn = 0;
  for (const int64_t in : {1, 2, 3, 5, 8, 9}) {
    for (const int64_t out : {1, 2, 4, 7, 9}) {
      for (int64_t rank = 1; rank <= 5; ++rank) {
        for (const DType a : kFloatTypes) {
          for (const DType b : kFloatTypes) {
            const TestPair pair(a, b, {in, rank, out}, seed_ += 10, 0.75);
            for (const DType input : kFloatTypes) {
              const auto packed = pair.Pack(input);
              for (int64_t rows = 1; rows <= 9; ++rows) {
                // Each shape meets every output type, with and without base, in turn.
                ++turn;
                ExpectRight(pair, *packed, input, kFloatTypes[turn % 3], rows, turn % 2 == 0);
                if (HasFailure()) return;
              }
            }
          }
        }
      }
    }
  }
}

TEST_F(ProjectionTest, LargeShapesMatchTheOracle) {
  for (const DType type : {DType::kBF16, DType::kF32}) {
    for (const int64_t rank : {1, 8, 16, 17, 40, 64, 80, 300}) {
      const TestPair pair(type, type, {256, rank, 512}, seed_ += 10, 2);
      const auto packed = pair.Pack(type);
      for (const int64_t rows : {1, 2, 7, 16, 33, 64, 65, 100, 200}) {
        ExpectRight(pair, *packed, type, type, rows, rank % 2 == 0);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(ProjectionTest, MixedTypesOfLargeShapesMatchTheOracle) {
  for (const DType input : kFloatTypes) {
    for (const DType factors : kFloatTypes) {
      for (const DType output : kFloatTypes) {
        ExpectRight(input, factors, factors, output, 37, {300, 16, 130}, true);
      }
    }
  }
}

TEST_F(ProjectionTest, OutputsWiderThanAChunkMatchTheOracle) {
  for (const DType type : {DType::kBF16, DType::kF32}) {
    for (const int64_t out : {4095, 4097, 8192, 9000}) {
      ExpectRight(type, type, type, type, 20, {48, 16, out}, out % 2 == 0);
      ExpectRight(type, type, type, type, 3, {48, 4, out}, out % 2 == 1);
    }
  }
}

TEST_F(ProjectionTest, RanksWiderThanAChunkMatchTheOracle) {
  for (const DType type : {DType::kBF16, DType::kF32}) {
    ExpectRight(type, type, type, type, 3, {20, 4100, 24}, true);
  }
}

TEST_F(ProjectionTest, InputsTooWideForScratchAreComputedInFewerRows) {
  for (const DType type : {DType::kBF16, DType::kF32}) {
    ExpectRight(type, type, type, type, 35, {100'003, 2, 3}, true);
  }
}

TEST_F(ProjectionTest, UnalignedBytesAreReadAndWritten) {
  for (const DType type : kFloatTypes) {
    for (const int64_t rows : {1, 16, 19}) {
      ExpectRight(type, type, type, type, rows, {64, 16, 100}, true, /*offset=*/1);
      ExpectRight(type, type, type, type, rows, {64, 16, 100}, false, /*offset=*/3);
    }
  }
}

TEST_F(ProjectionTest, NoRowsAreNoWork) {
  const TestPair pair(DType::kF32, DType::kF32, {8, 2, 8}, 1);
  TestMatrix input(DType::kF32, 0, 8), output(DType::kF32, 0, 8);
  EXPECT_THAT(Project(pool_, input, *pair.Pack(DType::kF32), 1, nullptr, output), IsOk());
}

TEST_F(ProjectionTest, TheBaseMayBeTheOutput) {
  for (const DType type : kFloatTypes) {
    for (const int64_t rows : {5, 16}) {
      const TestPair pair(type, type, {40, 16, 50}, 7);
      const auto packed = pair.Pack(type);
      const auto input = TestMatrix::Random(type, rows, 40, 8);
      const auto base = TestMatrix::Random(type, rows, 50, 9);
      TestMatrix apart(type, rows, 50);
      TestMatrix in_place = base;
      ASSERT_THAT(Project(pool_, input, *packed, 1, &base, apart), IsOk());
      ASSERT_THAT(Project(pool_, input, *packed, 1, &in_place, in_place), IsOk());
      EXPECT_TRUE(apart == in_place);
    }
  }
}

TEST_F(ProjectionTest, NaNAndInfinityReachTheirRowsAndNoOthers) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const DType type : kFloatTypes) {
    for (const int64_t rank : {1, 3, 16, 20, 70}) {
      SCOPED_TRACE(testing::Message() << DTypeName(type) << " rank " << rank);
      TestPair pair(type, type, {33, rank, 5}, 3);
      pair.a = TestMatrix::Filled(type, rank, 33, 1);
      pair.b = TestMatrix::Filled(type, 5, rank, -1);
      TestMatrix input = TestMatrix::Random(type, 20, 33, 4);
      const TestMatrix clean = input;
      input.Set(2, 7, std::numeric_limits<float>::quiet_NaN());
      input.Set(4, 32, kInf);
      input.Set(19, 0, -kInf);
      const auto packed = pair.Pack(type);
      TestMatrix output(type, 20, 5), expected(type, 20, 5);
      ASSERT_THAT(Project(pool_, input, *packed, 1, nullptr, output), IsOk());
      ASSERT_THAT(Project(pool_, clean, *packed, 1, nullptr, expected), IsOk());
      for (int64_t col = 0; col < 5; ++col) {
        EXPECT_TRUE(std::isnan(output.At(2, col)));
        EXPECT_EQ(output.At(4, col), -kInf);
        EXPECT_EQ(output.At(19, col), kInf);
        for (const int64_t row : {0, 1, 3, 5, 18}) {
          EXPECT_EQ(output.At(row, col), expected.At(row, col));
        }
      }
    }
  }
}

TEST_F(ProjectionTest, AWeightThatIsNotFiniteReachesItsColumnsOnly) {
  TestPair pair(DType::kF32, DType::kF32, {16, 4, 6}, 3);
  pair.b.Set(2, 1, std::numeric_limits<float>::quiet_NaN());
  const auto input = TestMatrix::Random(DType::kF32, 3, 16, 4);
  TestMatrix output(DType::kF32, 3, 6);
  ASSERT_THAT(Project(pool_, input, *pair.Pack(DType::kF32), 1, nullptr, output), IsOk());
  for (int64_t row = 0; row < 3; ++row) {
    for (int64_t col = 0; col < 6; ++col) EXPECT_EQ(std::isnan(output.At(row, col)), col == 2);
  }
}

TEST_F(ProjectionTest, TheFactorIsNotRoundedIntoTheFactors) {
  // 1/3 has no BF16 form; folded into B it would be off by 2^-9.
  TestPair pair(DType::kBF16, DType::kBF16, {1, 1, 1}, 3, 1.0 / 3);
  pair.a.Set(0, 0, 1);
  pair.b.Set(0, 0, 1);
  TestMatrix input = TestMatrix::Filled(DType::kF32, 1, 1, 1);
  TestMatrix output(DType::kF32, 1, 1);
  ASSERT_THAT(Project(pool_, input, *pair.Pack(DType::kF32), pair.factor, nullptr, output), IsOk());
  EXPECT_EQ(output.At(0, 0), 1.0f / 3);
}

TEST_F(ProjectionTest, SubnormalsAreKept) {
  TestPair pair(DType::kF32, DType::kF32, {1, 1, 1}, 3);
  pair.a.Set(0, 0, 0x1p-140f);
  pair.b.Set(0, 0, 1);
  TestMatrix input = TestMatrix::Filled(DType::kF32, 1, 1, 0.5f);
  TestMatrix output(DType::kF32, 1, 1);
  ASSERT_THAT(Project(pool_, input, *pair.Pack(DType::kF32), 1, nullptr, output), IsOk());
  EXPECT_EQ(output.At(0, 0), 0x1p-141f);
}

}  // namespace
}  // namespace adapterd
