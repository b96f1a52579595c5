// How many bytes packing takes, and what it takes as input.
#include "core/compute/packed_pair.h"

#include <gtest/gtest.h>

#include <limits>

#include "core/base/checked_math.h"
#include "tests/core/compute/projection_fixture.h"

namespace adapterd {
namespace {

std::vector<ComputeType> TypesOfThisCpu() {
  std::vector<ComputeType> types = {ComputeType::kF32};
  const DType bf16 = DType::kBF16;
  if (SharedKernels().ComputeTypeFor(bf16, bf16, bf16) == ComputeType::kBF16) {
    types.push_back(ComputeType::kBF16);
  }
  return types;
}

DType StoredType(ComputeType type) {
  return type == ComputeType::kBF16 ? DType::kBF16 : DType::kF32;
}

// As a pair with these factors is packed for input of A's type.
PairTypes TypesOf(DType a, DType b) { return {SharedKernels().ComputeTypeFor(a, a, b), a, b}; }

TEST(PackedPairTest, HoldsExactlyTheBytesThatWerePromised) {
  for (const DType a : kFloatTypes) {
    for (const DType b : kFloatTypes) {
      const PairTypes types = TypesOf(a, b);
      for (const int64_t in : {1, 17, 64, 1000, 5000}) {
        for (const int64_t rank : {1, 3, 8, 16, 24, 33, 64, 65, 100, 300}) {
          for (const int64_t out : {1, 63, 64, 130, 5000}) {
            const PairShape shape = {in, rank, out};
            const TestPair pair(a, b, shape, 1);
            ASSERT_OK_AND_ASSIGN(const auto packed, PackedPair::Pack(SharedKernels(), pair.a.view(),
                                                                     pair.b.view(), types.type));
            ASSERT_OK_AND_ASSIGN(const int64_t promised,
                                 PackedPair::BytesFor(SharedKernels(), shape, types));
            EXPECT_EQ(packed->bytes(), promised);
            EXPECT_EQ(packed->shape(), shape);
            EXPECT_EQ(packed->type(), types.type);
          }
        }
      }
    }
  }
}

TEST(PackedPairTest, GrowsTheUsualRanksLittle) {
  std::vector<DType> dtypes = {DType::kF32, DType::kF16};
  if (TypesOfThisCpu().size() > 1) dtypes.push_back(DType::kBF16);
  for (const DType dtype : dtypes) {
    for (const int64_t rank : {16, 32, 64, 128, 256}) {
      const PairShape shape = {4096, rank, 4096};
      ASSERT_OK_AND_ASSIGN(const int64_t packed,
                           PackedPair::BytesFor(SharedKernels(), shape, TypesOf(dtype, dtype)));
      const int64_t stored = rank * (shape.in_features + shape.out_features) * FloatBytes(dtype);
      EXPECT_LE(static_cast<double>(packed), (rank < 32 ? 2.2 : 1.2) * static_cast<double>(stored))
          << DTypeName(dtype) << " rank " << rank;
    }
  }
}

TEST(PackedPairTest, NoShapeFallsBackToReferenceLoops) {
  const Kernels kernels;
  for (const ComputeType type : TypesOfThisCpu()) {
    for (const int64_t rank : {1, 2, 5, 8, 9, 16, 17, 24, 33, 40, 64, 65, 100, 128, 300, 4100}) {
      const TestMatrix a(StoredType(type), rank, 100);
      const TestMatrix b(StoredType(type), 4500, rank);
      ASSERT_THAT(PackedPair::Pack(kernels, a.view(), b.view(), type), IsOk());
      EXPECT_THAT(kernels.SlowMatmuls(), testing::IsEmpty()) << "rank " << rank;
    }
  }
}

Tensor Copy(const TestMatrix& matrix) {
  AlignedBuffer buffer(matrix.bytes());
  std::memcpy(buffer.data(), matrix.data(), matrix.bytes());
  return {matrix.dtype(), {matrix.view().rows, matrix.view().cols}, std::move(buffer)};
}

void ExpectSame(const Tensor& actual, const Tensor& expected) {
  EXPECT_EQ(actual.dtype(), expected.dtype());
  EXPECT_EQ(actual.shape(), expected.shape());
  EXPECT_TRUE(std::ranges::equal(actual.bytes(), expected.bytes()));
}

// The factors, and what unpacking them to other types should give.
void ExpectUnpacks(const PackedPair& packed, const TestPair& pair) {
  SCOPED_TRACE(testing::Message() << DTypeName(pair.a.dtype()) << " " << DTypeName(pair.b.dtype())
                                  << " in " << packed.shape().in_features << " rank "
                                  << packed.shape().rank << " out " << packed.shape().out_features
                                  << (packed.is_embedding() ? " embedding" : ""));
  for (const DType to : kFloatTypes) {
    for (const TestMatrix* factor : {&pair.a, &pair.b}) {
      TestMatrix expected(to, factor->view().rows, factor->view().cols);
      for (int64_t row = 0; row < factor->view().rows; ++row) {
        for (int64_t col = 0; col < factor->view().cols; ++col) {
          expected.Set(row, col, factor->At(row, col));
        }
      }
      ExpectSame(factor == &pair.a ? packed.UnpackA(to) : packed.UnpackB(to), Copy(expected));
    }
  }
}

TEST(PackedPairTest, UnpacksWhatWasPackedBitForBit) {
  uint32_t seed = 1;
  for (const DType a : kFloatTypes) {
    for (const DType b : kFloatTypes) {
      for (const int64_t in : {1, 2, 17, 300}) {
        for (const int64_t rank : {1, 2, 3, 8, 9, 16, 24, 33, 64, 65, 100, 300}) {
          for (const int64_t out : {1, 15, 64, 130}) {
            const TestPair pair(a, b, {in, rank, out}, seed += 10);
            ExpectUnpacks(*pair.Pack(DType::kF32), pair);
            ExpectUnpacks(*pair.Pack(DType::kBF16), pair);
            ASSERT_OK_AND_ASSIGN(
                const auto embedding,
                PackedPair::PackEmbedding(SharedKernels(), pair.a.view(), pair.b.view()));
            ExpectUnpacks(*embedding, pair);
            if (testing::Test::HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(PackedPairTest, UnpacksMatricesOfSeveralChunks) {
  for (const DType type : kFloatTypes) {
    for (const int64_t rank : {4, 16}) {
      const TestPair pair(type, type, {5000, rank, 9001}, 5);
      ExpectUnpacks(*pair.Pack(type), pair);
    }
  }
}

TEST(PackedPairTest, UnpacksEveryFiniteValueOf16Bits) {
  for (const DType type : {DType::kF16, DType::kBF16}) {
    TestPair pair(type, type, {256, 256, 256}, 5);
    for (int64_t i = 0; i < 1 << 16; ++i) {
      for (TestMatrix* factor : {&pair.a, &pair.b}) {
        factor->SetBits(i / 256, i % 256, static_cast<uint16_t>(i));
        if (!std::isfinite(factor->At(i / 256, i % 256))) factor->Set(i / 256, i % 256, 1);
      }
    }
    for (const DType input : {DType::kF32, type}) {
      const auto packed = pair.Pack(input);
      ExpectSame(packed->UnpackA(type), Copy(pair.a));
      ExpectSame(packed->UnpackB(type), Copy(pair.b));
    }
  }
}

void ExpectEmbeddingHoldsWhatWasPromised(const TestPair& pair, const PairShape& shape) {
  const DType a = pair.a.dtype();
  ASSERT_OK_AND_ASSIGN(const auto packed,
                       PackedPair::PackEmbedding(SharedKernels(), pair.a.view(), pair.b.view()));
  ASSERT_OK_AND_ASSIGN(const int64_t promised,
                       PackedPair::EmbeddingBytesFor(SharedKernels(), shape,
                                                     {ComputeType::kF32, a, pair.b.dtype()}));
  EXPECT_EQ(packed->bytes(), promised);
  EXPECT_EQ(packed->shape(), shape);
  EXPECT_TRUE(packed->is_embedding());
  EXPECT_FALSE(pair.Pack(a)->is_embedding());
  // A takes no more than it does in its file, and B no more when it is F16.
  const int64_t element = pair.b.dtype() == DType::kF16 ? 2 : 4;
  EXPECT_LE(promised, pair.a.bytes() + element * RoundUp(shape.rank, int64_t{16}) *
                                           RoundUp(shape.out_features, int64_t{64}));
}

TEST(PackedPairTest, AnEmbeddingHoldsExactlyTheBytesThatWerePromised) {
  for (const DType a : kFloatTypes) {
    for (const DType b : kFloatTypes) {
      for (const int64_t rank : {1, 3, 8, 16, 33}) {
        for (const int64_t out : {1, 64, 5000}) {
          const PairShape shape = {1000, rank, out};
          ExpectEmbeddingHoldsWhatWasPromised(TestPair(a, b, shape, 1), shape);
        }
      }
    }
  }
}

TEST(PackedPairTest, RefusesEmbeddingsThatDoNotFit) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  for (const PairShape& shape :
       {PairShape{kMax, 1, 1}, PairShape{1, kMax, 1}, PairShape{1, 1, kMax},
        PairShape{int64_t{1} << 31, (int64_t{1} << 31) - 1, 1},
        PairShape{1, (int64_t{1} << 31) - 1, (int64_t{1} << 31) - 1}}) {
    EXPECT_THAT(PackedPair::EmbeddingBytesFor(SharedKernels(), shape, {}),
                HasReason(Reason::kShapeMismatch));
  }
}

TEST(PackedPairTest, RefusesSizesThatDoNotFit) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  for (const ComputeType type : TypesOfThisCpu()) {
    for (const PairShape& shape :
         {PairShape{kMax, 1, 1}, PairShape{1, kMax, 1}, PairShape{1, 1, kMax},
          PairShape{int64_t{1} << 31, int64_t{1} << 30, 1},
          PairShape{int64_t{1} << 30, (int64_t{1} << 31) - 1, int64_t{1} << 30}}) {
      EXPECT_THAT(PackedPair::BytesFor(SharedKernels(), shape, {type}),
                  HasReason(Reason::kShapeMismatch));
    }
  }
}

TEST(PackedPairTest, TakesFactorsAtAnyAddress) {
  ThreadPool pool("compute", 1, PrepareComputeThread);
  for (const DType type : kFloatTypes) {
    TestPair aligned(type, type, {40, 16, 70}, 1);
    TestPair shifted = aligned;
    shifted.a = TestMatrix::Random(type, 16, 40, 1, 1, /*offset=*/1);
    shifted.b = TestMatrix::Random(type, 70, 16, 2, 1, /*offset=*/3);
    const auto input = TestMatrix::Random(type, 4, 40, 9);
    std::vector<TestMatrix> outputs;
    for (const TestPair* pair : {&aligned, &shifted}) {
      const auto packed = pair->Pack(type);
      outputs.emplace_back(type, 4, 70);
      ProjectionTarget target;
      target.segments = {{4, {{packed.get(), 1}}}};
      target.output = outputs.back().mutable_view();
      ASSERT_THAT(
          ApplyProjection(SharedKernels(), pool, input.view(), {&target, 1}, Cancellation()),
          IsOk());
    }
    EXPECT_TRUE(outputs[0] == outputs[1]) << DTypeName(type);
  }
}

TEST(PackedPairTest, MayOutliveItsKernels) {
  const TestPair pair(DType::kF32, DType::kF32, {8, 4, 8}, 1);
  std::unique_ptr<const PackedPair> packed;
  {
    const Kernels kernels;
    ASSERT_OK_AND_ASSIGN(
        packed, PackedPair::Pack(kernels, pair.a.view(), pair.b.view(), ComputeType::kF32));
  }
  const auto input = TestMatrix::Random(DType::kF32, 2, 8, 9);
  TestMatrix output(DType::kF32, 2, 8);
  ThreadPool pool("compute", 1, PrepareComputeThread);
  ProjectionTarget target;
  target.segments = {{2, {{packed.get(), 1}}}};
  target.output = output.mutable_view();
  ASSERT_THAT(ApplyProjection(SharedKernels(), pool, input.view(), {&target, 1}, Cancellation()),
              IsOk());
  ExpectNearOracle(input, {&pair}, nullptr, output);
}

}  // namespace
}  // namespace adapterd
