#include "core/compute/experts.h"

#include <gtest/gtest.h>

#include "tests/core/compute/matrices.h"

namespace adapterd {
namespace {

TEST(ExpertsTest, ColumnsOfBAreRankMajor) {
  for (const DType type : kFloatTypes) {
    for (const int64_t experts : {1, 2, 5}) {
      for (const int64_t rank : {1, 3, 4}) {
        for (const int64_t offset : {0, 1}) {
          const auto b = TestMatrix::Random(type, 7, rank * experts, 5, 1, offset);
          const Tensor split = SplitExpertsB(b.view(), experts);
          ASSERT_EQ(split.shape(), (Shape{experts, 7, rank}));
          ASSERT_EQ(split.dtype(), type);
          const MatrixView all = {type, experts * 7, rank, split.bytes().data()};
          for (int64_t e = 0; e < experts; ++e) {
            for (int64_t o = 0; o < 7; ++o) {
              for (int64_t k = 0; k < rank; ++k) {
                float value;
                ConvertToF32(type, all.Rows(e * 7 + o, 1).data + k * FloatBytes(type), &value, 1);
                ASSERT_EQ(value, b.At(o, k * experts + e));
              }
            }
          }
        }
      }
    }
  }
}

TEST(ExpertsTest, JoiningUndoesSplittingBitForBit) {
  for (const DType type : kFloatTypes) {
    TestMatrix b = TestMatrix::Random(type, 6, 12, 5);
    if (type != DType::kF32) b.SetBits(1, 1, 0x7f81);
    const Tensor joined = JoinExpertsB(SplitExpertsB(b.view(), 4));
    EXPECT_EQ(joined.shape(), (Shape{6, 12}));
    EXPECT_EQ(joined.dtype(), type);
    EXPECT_TRUE(std::ranges::equal(joined.bytes(), std::span(b.data(), b.bytes())));
  }
}

}  // namespace
}  // namespace adapterd
