#include "core/compute/nf4.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/compute/nf4_codes.h"
#include "core/tensor/convert.h"
#include "tests/core/compute/matrices.h"

namespace adapterd {
namespace {

// Copied from appendix E of the paper, and from nowhere else.
constexpr double kPaper[16] = {-1.0,
                               -0.6961928009986877,
                               -0.5250730514526367,
                               -0.39491748809814453,
                               -0.28444138169288635,
                               -0.18477343022823334,
                               -0.09105003625154495,
                               0.0,
                               0.07958029955625534,
                               0.16093020141124725,
                               0.24611230194568634,
                               0.33791524171829224,
                               0.44070982933044434,
                               0.5626170039176941,
                               0.7229568362236023,
                               1.0};

// The definition, one element at a time, in double.
struct Expected {
  std::vector<int> codes;
  std::vector<float> absmax;
  std::vector<float> values;
  double error = 0;
};

int NearestLevel(double value, double absmax) {
  int nearest = 0;
  for (int i = 1; i < 16; ++i) {
    const double distance = std::abs(value - kPaper[i] * absmax);
    if (distance < std::abs(value - kPaper[nearest] * absmax)) nearest = i;
  }
  return absmax == 0 ? 7 : nearest;
}

Expected Quantized(const std::vector<float>& weight, int64_t block_size) {
  Expected expected;
  double lost = 0;
  double all = 0;
  for (size_t i = 0; i < weight.size(); ++i) {
    if (i % block_size == 0) {
      float largest = 0;
      for (size_t j = i; j < std::min(weight.size(), i + block_size); ++j) {
        largest = std::max(largest, std::abs(weight[j]));
      }
      expected.absmax.push_back(largest);
    }
    const float absmax = expected.absmax.back();
    const int code = NearestLevel(weight[i], absmax);
    expected.codes.push_back(code);
    expected.values.push_back(static_cast<float>(static_cast<float>(kPaper[code]) * absmax));
    const double error = double{weight[i]} - expected.values.back();
    lost += error * error;
    all += double{weight[i]} * weight[i];
  }
  expected.error = all == 0 ? 0 : std::sqrt(lost / all);
  return expected;
}

MatrixView View(const std::vector<float>& values, int64_t rows) {
  return {DType::kF32, rows, static_cast<int64_t>(values.size()) / rows,
          reinterpret_cast<const std::byte*>(values.data())};
}

int CodeAt(const Nf4Matrix& matrix, size_t i) {
  const auto byte = static_cast<int>(matrix.codes()[i / 2]);
  return i % 2 == 0 ? byte / 16 : byte % 16;
}

void ExpectRight(const std::vector<float>& weight, int64_t rows, int64_t block_size) {
  SCOPED_TRACE(testing::Message() << weight.size() << " elements in blocks of " << block_size);
  const Expected expected = Quantized(weight, block_size);
  const Nf4Matrix matrix(View(weight, rows), block_size);
  ASSERT_EQ(matrix.codes().size(), (weight.size() + 1) / 2);
  for (size_t i = 0; i < weight.size(); ++i) {
    ASSERT_EQ(CodeAt(matrix, i), expected.codes[i]) << "element " << i << ": " << weight[i];
  }
  if (weight.size() % 2 == 1) {
    EXPECT_EQ(CodeAt(matrix, weight.size()), 0);
  }
  const std::vector<float> absmax(matrix.absmax().begin(), matrix.absmax().end());
  EXPECT_EQ(absmax, expected.absmax);
  EXPECT_EQ(matrix.bytes(), *Nf4Matrix::BytesFor(rows, matrix.cols(), block_size));
  EXPECT_NEAR(matrix.error(), expected.error, 1e-12 * expected.error);
  std::vector<float> values(weight.size(), -5.0f);
  matrix.DequantizeRows(
      0, {DType::kF32, rows, matrix.cols(), reinterpret_cast<std::byte*>(values.data())});
  EXPECT_EQ(values, expected.values);
}

std::vector<float> Random(int64_t count, uint32_t seed) {
  const auto matrix = TestMatrix::Random(DType::kF32, 1, count, seed);
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = matrix.At(0, i);
  return values;
}

TEST(Nf4Test, HasTheLevelsOfThePaper) {
  for (int i = 0; i < 16; ++i) EXPECT_EQ(kNf4Levels[i], static_cast<float>(kPaper[i]));
}

TEST(Nf4Test, MatchesTheDefinitionForEveryBlockSizeAndOddCounts) {
  for (int64_t block_size = 1; block_size <= 130; ++block_size) {
    for (const int64_t count : {1, 2, 63, 64, 65, 129, 391}) {
      ExpectRight(Random(count, block_size), 1, block_size);
    }
  }
}

TEST(Nf4Test, BlocksGoOnFromRowToRow) {
  for (const int64_t cols : {1, 3, 31, 64, 100}) {
    for (const int64_t block_size : {1, 7, 32, 64, 4096}) {
      ExpectRight(Random(13 * cols, cols), 13, block_size);
    }
  }
}

TEST(Nf4Test, BlocksMayBeLongerThanWhatIsConvertedAtOnce) {
  for (const int64_t block_size : {1023, 1025, 4097}) ExpectRight(Random(9001, 5), 1, block_size);
}

TEST(Nf4Test, KeepsZerosDenormalsAndExtremes) {
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr float kMin = std::numeric_limits<float>::denorm_min();
  ExpectRight({0, 0, 0, 0, 0}, 1, 2);
  ExpectRight({-0.0f, 0, 1, -0.0f}, 1, 4);
  ExpectRight({kMin, -kMin, 2 * kMin, 3 * kMin, 0, 7 * kMin}, 2, 6);
  ExpectRight({kMax, -kMax, kMax / 2, 1, -kMin, 0.7f * kMax, -0.3f * kMax}, 1, 64);
  ExpectRight({0x1p-126f, 0x1p-127f, -0x1p-130f, 0x1.8p-127f}, 1, 64);
}

// Where one level gives way to the next is where rounding would show.
TEST(Nf4Test, DecidesExactlyInTheMiddleOfTwoLevels) {
  for (const float absmax : {1.0f, 0.1f, 3.7e-39f, 1.3e38f, 2.5f}) {
    std::vector<float> weight = {absmax};
    for (int i = 0; i < 15; ++i) {
      const auto middle = static_cast<float>((kPaper[i] + kPaper[i + 1]) / 2 * absmax);
      weight.push_back(std::nextafter(middle, -absmax));
      weight.push_back(middle);
      weight.push_back(std::nextafter(middle, absmax));
    }
    ExpectRight(weight, 1, 64);
  }
}

TEST(Nf4Test, EachElementIsWithinHalfTheLevelSpacing) {
  const std::vector<float> weight = Random(10'000, 3);
  const Nf4Matrix matrix(View(weight, 100), 64);
  std::vector<float> values(weight.size());
  matrix.Dequantize(0, 10'000, values.data());
  for (size_t i = 0; i < weight.size(); ++i) {
    // The widest gap lies between the two lowest levels.
    EXPECT_LE(std::abs(values[i] - weight[i]), 0.1520 * matrix.absmax()[i / 64]);
  }
  EXPECT_LT(matrix.error(), 0.12);
}

TEST(Nf4Test, TakesAndGivesEveryFloatType) {
  for (const DType dtype : kFloatTypes) {
    const auto weight = TestMatrix::Random(dtype, 9, 77, 4, 1, /*offset=*/1);
    std::vector<float> wide(9 * 77);
    ConvertToF32(dtype, weight.data(), wide.data(), 9 * 77);
    const Expected expected = Quantized(wide, 64);
    const Nf4Matrix matrix(weight.view(), 64);
    for (const DType to : kFloatTypes) {
      TestMatrix rows(to, 4, 77, 1);
      TestMatrix rounded(to, 4, 77, 1);
      matrix.DequantizeRows(3, {to, 4, 77, rows.data()});
      ConvertFromF32(expected.values.data() + 3 * 77, to, rounded.data(), 4 * 77);
      EXPECT_TRUE(rows == rounded);
    }
  }
}

TEST(Nf4Test, AllInstructionSetsGiveTheSameBitsFromAnyElementOn) {
  const std::vector<float> weight = Random(1000, 8);
  for (const int64_t block_size : {1, 2, 5, 16, 33, 64, 1000}) {
    const Nf4Matrix matrix(View(weight, 1), block_size);
    const Expected expected = Quantized(weight, block_size);
    for (const Nf4Codes& variant : Nf4CodesVariants()) {
      SCOPED_TRACE(testing::Message() << variant.name << ", blocks of " << block_size);
      for (const int64_t first : {0, 1, 2, 63, 64, 65, 999}) {
        for (const int64_t count : {0, 1, 2, 15, 16, 17, 32, 100, 1000}) {
          if (first + count > 1000) continue;
          std::vector<float> values(count + 1, -5.0f);
          variant.decode({matrix.codes().data(), matrix.absmax().data(), block_size}, first, count,
                         values.data());
          for (int64_t i = 0; i < count; ++i) {
            ASSERT_EQ(values[i], expected.values[first + i]) << first << " + " << i;
          }
          EXPECT_EQ(values[count], -5.0f);
        }
      }
      std::vector<uint8_t> codes(block_size);
      variant.encode(weight.data(), block_size, LimitsFor(expected.absmax[0]), codes.data());
      for (int64_t i = 0; i < block_size; ++i) EXPECT_EQ(codes[i], expected.codes[i]);
    }
  }
}

TEST(Nf4Test, SaysWhatItWillHold) {
  EXPECT_EQ(Nf4Matrix::BytesFor(0, 5, 64), 0);
  EXPECT_EQ(Nf4Matrix::BytesFor(3, 43, 64), 65 + 3 * 4);
  EXPECT_EQ(Nf4Matrix::BytesFor(4096, 4096, 64), 8 * 1024 * 1024 + 1024 * 1024);
  EXPECT_EQ(Nf4Matrix::BytesFor(2, 2, std::numeric_limits<int64_t>::max()), 2 + 4);
  EXPECT_EQ(Nf4Matrix::BytesFor(int64_t{1} << 40, int64_t{1} << 40, 64), std::nullopt);
  EXPECT_EQ(Nf4Matrix::BytesFor(int64_t{1} << 31, int64_t{1} << 31, 1), std::nullopt);
  const Nf4Matrix empty({DType::kF32, 0, 5, nullptr}, 64);
  EXPECT_EQ(empty.bytes(), 0);
  EXPECT_EQ(empty.error(), 0);
}

}  // namespace
}  // namespace adapterd
