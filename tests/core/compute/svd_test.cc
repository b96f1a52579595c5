#include "core/compute/svd.h"

#include <gmock/gmock.h>

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "core/compute/reference.h"
#include "core/compute/svd_signs.h"
#include "tests/core/compute/matrices.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/svd_oracle.h"

namespace adapterd {
namespace {

// Of the largest singular value: QR in F32 loses some units of 6e-8 per reflection.
constexpr double kTolerance = 2e-6;

std::vector<double> Doubles(const Tensor& tensor) {
  const auto* values = reinterpret_cast<const float*>(tensor.bytes().data());
  return {values, values + tensor.bytes().size() / sizeof(float)};
}

std::vector<double> Product(const TruncatedSvd& svd) {
  const ReferenceTerm term = {AsMatrix(svd.lora_a), AsMatrix(svd.lora_b), 1};
  return ReferenceWeightDelta({&term, 1}, svd.lora_b.shape()[0], svd.lora_a.shape()[1]);
}

double Distance(const std::vector<double>& x, const std::vector<double>& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
  return std::sqrt(sum);
}

// Rows of A are orthonormal, columns of B orthogonal and as long as the values, which descend.
void ExpectFactorsOfSvd(const TruncatedSvd& svd) {
  const std::vector<double> a = Doubles(svd.lora_a);
  const std::vector<double> b = Doubles(svd.lora_b);
  const auto rank = static_cast<int64_t>(svd.values.size());
  const int64_t cols = svd.lora_a.shape()[1];
  const int64_t rows = svd.lora_b.shape()[0];
  const double largest = svd.values[0];
  for (int64_t i = 0; i < rank; ++i) {
    if (i > 0) {
      EXPECT_LE(svd.values[i], svd.values[i - 1]);
    }
    for (int64_t j = 0; j <= i; ++j) {
      double in_a = 0;
      double in_b = 0;
      for (int64_t k = 0; k < cols; ++k) in_a += a[i * cols + k] * a[j * cols + k];
      for (int64_t k = 0; k < rows; ++k) in_b += b[k * rank + i] * b[k * rank + j];
      EXPECT_NEAR(in_a, i == j ? 1 : 0, 1e-5);
      EXPECT_NEAR(in_b, i == j ? svd.values[i] * svd.values[i] : 0, 1e-5 * largest * largest);
    }
  }
}

void ExpectBestApproximation(const TruncatedSvd& svd, const std::vector<double>& matrix,
                             int64_t rows, int64_t cols, int64_t rank) {
  const OracleSvd oracle = SvdOracle(matrix, rows, cols);
  ASSERT_EQ(svd.values.size(), rank);
  for (int64_t i = 0; i < rank; ++i) {
    EXPECT_NEAR(svd.values[i], oracle.values[i], kTolerance * oracle.values[0]) << i;
  }
  const double tolerance = 1e-5 * oracle.values[0];
  EXPECT_LE(Distance(Product(svd), oracle.Truncated(rank)), tolerance);
  ExpectFactorsOfSvd(svd);
}

struct Stack {
  std::vector<TestMatrix> a;
  std::vector<TestMatrix> b;
  std::vector<double> factors;

  void Add(DType dtype, int64_t rows, int64_t cols, int64_t rank, double factor, float size = 1) {
    const auto seed = static_cast<uint32_t>(a.size()) * 2 + 1;
    a.push_back(TestMatrix::Random(dtype, rank, cols, seed, size));
    b.push_back(TestMatrix::Random(dtype, rows, rank, seed + 1, size));
    factors.push_back(factor);
  }
  std::vector<MergeTerm> terms() const {
    std::vector<MergeTerm> terms;
    for (size_t i = 0; i < a.size(); ++i) terms.push_back({a[i].view(), b[i].view(), factors[i]});
    return terms;
  }
  std::vector<double> delta() const {
    std::vector<ReferenceTerm> terms;
    for (size_t i = 0; i < a.size(); ++i) terms.push_back({a[i].view(), b[i].view(), factors[i]});
    return ReferenceWeightDelta(terms, b[0].view().rows, a[0].view().cols);
  }
};

class LowRankSvdTest : public testing::TestWithParam<std::tuple<int64_t, int64_t>> {};

TEST_P(LowRankSvdTest, IsTheBestApproximation) {
  const auto [rows, cols] = GetParam();
  Stack stack;
  stack.Add(DType::kF32, rows, cols, 8, 0.7);
  stack.Add(DType::kBF16, rows, cols, 4, -2);
  stack.Add(DType::kF16, rows, cols, 5, 0.01);
  for (const int64_t rank : {1, 6, 17}) {
    const TruncatedSvd svd = *LowRankSvd(stack.terms(), rank);
    ExpectBestApproximation(svd, stack.delta(), rows, cols,
                            std::min({rank, rows, cols, int64_t{17}}));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, LowRankSvdTest,
                         testing::Values(std::tuple(40, 60), std::tuple(60, 40), std::tuple(17, 17),
                                         std::tuple(3, 50), std::tuple(50, 3), std::tuple(1, 1)));

TEST(LowRankSvdTest, TwiceTheSameAdapterHasHalfTheRank) {
  Stack stack;
  stack.Add(DType::kF32, 30, 20, 4, 1);
  stack.a.push_back(stack.a[0]);
  stack.b.push_back(stack.b[0]);
  stack.factors.push_back(1);
  const TruncatedSvd svd = *LowRankSvd(stack.terms(), 8);
  ASSERT_EQ(svd.values.size(), 8);
  for (size_t i = 4; i < 8; ++i) EXPECT_LE(svd.values[i], kTolerance * svd.values[0]);
  EXPECT_LE(Distance(Product(svd), stack.delta()), 1e-5 * svd.values[0]);
}

TEST(LowRankSvdTest, WhatCancelsOutIsZero) {
  Stack stack;
  stack.Add(DType::kF32, 30, 20, 4, 0);
  const TruncatedSvd svd = *LowRankSvd(stack.terms(), 4);
  EXPECT_THAT(svd.values, testing::Each(0));
  EXPECT_THAT(Doubles(svd.lora_b), testing::Each(0));
  for (const double value : Doubles(svd.lora_a)) EXPECT_TRUE(std::isfinite(value));
}

TEST(LowRankSvdTest, SizesWhoseSquaresDoNotFitIntoF32AreNoTrouble) {
  for (const float size : {1e-30F, 1e15F}) {
    Stack stack;
    stack.Add(DType::kF32, 30, 20, 4, 1, size);
    const TruncatedSvd svd = *LowRankSvd(stack.terms(), 3);
    const OracleSvd oracle = SvdOracle(stack.delta(), 30, 20);
    for (int i = 0; i < 3; ++i) {
      EXPECT_NEAR(svd.values[i], oracle.values[i], kTolerance * oracle.values[0]);
    }
  }
}

TEST(LowRankSvdTest, TheLargestElementOfEachColumnOfBIsPositive) {
  Stack stack;
  stack.Add(DType::kF32, 30, 20, 4, -1);
  const TruncatedSvd svd = *LowRankSvd(stack.terms(), 4);
  const std::vector<double> b = Doubles(svd.lora_b);
  for (int64_t k = 0; k < 4; ++k) {
    double largest = 0;
    for (int64_t i = 0; i < 30; ++i) {
      if (std::abs(b[i * 4 + k]) > std::abs(largest)) largest = b[i * 4 + k];
    }
    EXPECT_GT(largest, 0);
  }
}

TEST(LowRankSvdTest, WhatDoesNotFitIntoF32IsAnError) {
  Stack stack;
  stack.Add(DType::kF32, 30, 20, 4, 1e39);
  EXPECT_THAT(LowRankSvd(stack.terms(), 4), HasReason(Reason::kNonFiniteResult));
}

class DenseSvdTest : public testing::Test {
 protected:
  TruncatedSvd Decompose(const TestMatrix& matrix, int64_t rank) {
    absl::StatusOr<TruncatedSvd> svd = DenseSvd(pool_, matrix.view(), rank, Cancellation());
    EXPECT_THAT(svd, IsOk());
    return *std::move(svd);
  }

  ThreadPool pool_{"svd", 2};
};

std::vector<double> Values(const TestMatrix& matrix) {
  const auto* values = reinterpret_cast<const float*>(matrix.data());
  return {values, values + matrix.view().rows * matrix.view().cols};
}

TEST_F(DenseSvdTest, IsTheBestApproximationOfSmallMatrices) {
  for (const auto& [rows, cols] : {std::pair(40, 60), std::pair(60, 40), std::pair(1, 9)}) {
    const TestMatrix matrix = TestMatrix::Random(DType::kF32, rows, cols, 7);
    const int64_t rank = std::min(5, rows);
    ExpectBestApproximation(Decompose(matrix, rank), Values(matrix), rows, cols, rank);
  }
}

// Noise alone is the hardest: its largest singular values lie close together.
TEST_F(DenseSvdTest, LargeMatricesHaveWhatADirectDecompositionFinds) {
  for (const auto& [rows, cols] : {std::pair(560, 700), std::pair(700, 560)}) {
    const TestMatrix matrix = TestMatrix::Random(DType::kF32, rows, cols, 3);
    const TruncatedSvd svd = Decompose(matrix, 6);
    // By the road for low ranks, of D = D I or I D.
    TestMatrix identity(DType::kF32, std::min(rows, cols), std::min(rows, cols));
    for (int64_t i = 0; i < identity.view().rows; ++i) identity.Set(i, i, 1);
    const MergeTerm whole = rows < cols ? MergeTerm{matrix.view(), identity.view(), 1}
                                        : MergeTerm{identity.view(), matrix.view(), 1};
    const TruncatedSvd direct = *LowRankSvd({&whole, 1}, 6);
    ASSERT_EQ(svd.values.size(), 6);
    for (int i = 0; i < 6; ++i) {
      EXPECT_NEAR(svd.values[i], direct.values[i], kTolerance * direct.values[0]);
    }
    EXPECT_LE(Distance(Product(svd), Product(direct)), 1e-4 * direct.values[0]);
    ExpectFactorsOfSvd(svd);
  }
}

TEST_F(DenseSvdTest, IsTheSameOnAnyNumberOfThreads) {
  const TestMatrix matrix = TestMatrix::Random(DType::kF32, 530, 600, 5);
  ThreadPool one("svd", 1);
  absl::StatusOr<TruncatedSvd> alone = DenseSvd(one, matrix.view(), 3, Cancellation());
  ASSERT_THAT(alone, IsOk());
  const TruncatedSvd shared = Decompose(matrix, 3);
  EXPECT_EQ(Doubles(alone->lora_a), Doubles(shared.lora_a));
  EXPECT_EQ(Doubles(alone->lora_b), Doubles(shared.lora_b));
}

TEST_F(DenseSvdTest, LargeZerosAndLowRanksConverge) {
  TestMatrix matrix(DType::kF32, 530, 600);
  EXPECT_THAT(Decompose(matrix, 3).values, testing::Each(0));
  matrix.Set(400, 7, 2);
  matrix.Set(3, 500, 1);
  const TruncatedSvd svd = Decompose(matrix, 3);
  EXPECT_NEAR(svd.values[0], 2, kTolerance);
  EXPECT_NEAR(svd.values[1], 1, kTolerance);
  EXPECT_NEAR(svd.values[2], 0, kTolerance);
  EXPECT_LE(Distance(Product(svd), Values(matrix)), 1e-5);
}

TEST_F(DenseSvdTest, WhatIsNotFiniteIsAnError) {
  for (const int64_t side : {20, 600}) {
    TestMatrix matrix(DType::kF32, side, side);
    matrix.Set(side - 1, 0, INFINITY);
    EXPECT_THAT(DenseSvd(pool_, matrix.view(), 3, Cancellation()),
                HasReason(Reason::kNonFiniteResult));
  }
}

TEST_F(DenseSvdTest, StopsWhenNobodyWaits) {
  Cancellation cancellation;
  cancellation.Cancel();
  const TestMatrix matrix = TestMatrix::Random(DType::kF32, 530, 600, 5);
  EXPECT_EQ(DenseSvd(pool_, matrix.view(), 3, cancellation).status().code(),
            absl::StatusCode::kCancelled);
}

// Signs of the first row of U as torch.linalg.svd of PyTorch 2 gives them on a CPU.
TEST_F(DenseSvdTest, SignsAreThoseOfTorchOnceTheyAreTurned) {
  struct {
    int64_t rows, cols;
    const char* signs;
  } const cases[] = {
      {3, 5, "+--"}, {3, 9, "+-+"}, {5, 4, "----"}, {6, 4, "+-+-"}, {9, 4, "-+++"},
  };
  for (const auto& [rows, cols, signs] : cases) {
    SCOPED_TRACE(testing::Message() << rows << " x " << cols);
    TestMatrix matrix(DType::kF32, rows, cols);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        matrix.Set(i, j, static_cast<float>((7 * i + 5 * j + i * j) % 11 - 5));
      }
    }
    const auto rank = static_cast<int64_t>(std::string_view(signs).size());
    TruncatedSvd svd = Decompose(matrix, rank);
    ASSERT_THAT(TurnAsLapack(matrix.view(), svd), IsOk());
    std::string found;
    for (int64_t i = 0; i < rank; ++i) found += Doubles(svd.lora_b)[i] > 0 ? '+' : '-';
    EXPECT_EQ(found, signs);
    ExpectFactorsOfSvd(svd);
    EXPECT_LE(Distance(Product(svd), Values(matrix)), 1e-5 * svd.values[0]);
  }
}

}  // namespace
}  // namespace adapterd
