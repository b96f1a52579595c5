// What Kernels says about the CPU, and the oracle's own arithmetic.
#include "core/compute/kernels.h"

#include <gtest/gtest.h>

#include "core/compute/reference.h"
#include "tests/core/compute/matrices.h"

namespace adapterd {
namespace {

TEST(KernelsTest, NamesTheInstructionSetAndTheVersion) {
  const Kernels kernels;
  EXPECT_FALSE(kernels.isa().empty());
  EXPECT_NE(Kernels::OneDnnVersion().find('.'), std::string::npos);
}

TEST(KernelsTest, OnlyBF16ThroughoutMayComputeInBF16) {
  const Kernels kernels;
  for (const DType input : kFloatTypes) {
    for (const DType a : kFloatTypes) {
      for (const DType b : kFloatTypes) {
        if (input == DType::kBF16 && a == DType::kBF16 && b == DType::kBF16) continue;
        EXPECT_EQ(kernels.ComputeTypeFor(input, a, b), ComputeType::kF32);
      }
    }
  }
}

TEST(KernelsTest, ACpuWithoutBF16ComputesInF32) {
  const Kernels kernels;
  const bool can = kernels.isa().find("BF16") != std::string::npos ||
                   kernels.isa().find("AMX") != std::string::npos ||
                   kernels.isa().find("ISA_") != std::string::npos;  // later than this code
  if (can) GTEST_SKIP() << kernels.isa();
  EXPECT_EQ(kernels.ComputeTypeFor(DType::kBF16, DType::kBF16, DType::kBF16), ComputeType::kF32);
}

TEST(ReferenceTest, DeltaIsFactorTimesBTimesATimesX) {
  TestMatrix input(DType::kF32, 1, 2), a(DType::kBF16, 1, 2), b(DType::kF16, 2, 1);
  input.Set(0, 0, 3);
  input.Set(0, 1, 5);
  a.Set(0, 0, 1);
  a.Set(0, 1, 2);
  b.Set(0, 0, 10);
  b.Set(1, 0, -1);
  const ReferenceTerm terms[] = {{a.view(), b.view(), 0.5}, {a.view(), b.view(), 1}};
  const double low_rank = 3 + 5 * 2;
  EXPECT_EQ(ReferenceDelta(input.view(), {terms, 1}, 2),
            (std::vector<double>{low_rank * 5, low_rank * -0.5}));
  EXPECT_EQ(ReferenceDelta(input.view(), terms, 2),
            (std::vector<double>{low_rank * 15, low_rank * -1.5}));
  EXPECT_EQ(ReferenceDelta(input.view(), {}, 2), (std::vector<double>{0, 0}));
}

TEST(ReferenceTest, WeightDeltaIsFactorTimesBTimesA) {
  TestMatrix a(DType::kF32, 1, 3), b(DType::kF32, 2, 1);
  for (int i = 0; i < 3; ++i) a.Set(0, i, static_cast<float>(i + 1));
  b.Set(0, 0, 2);
  b.Set(1, 0, 4);
  const ReferenceTerm terms[] = {{a.view(), b.view(), 0.5}};
  EXPECT_EQ(ReferenceWeightDelta(terms, 2, 3), (std::vector<double>{1, 2, 3, 2, 4, 6}));
}

}  // namespace
}  // namespace adapterd
