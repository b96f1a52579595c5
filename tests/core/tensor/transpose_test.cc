// Every word of every small size, at the right place and nowhere else.
#include "core/tensor/transpose.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace adapterd {
namespace {

template <typename Word>
class TransposeTest : public testing::Test {
 protected:
  static constexpr int64_t kBytes = sizeof(Word);
  static constexpr int64_t kGap = 3;        // words between rows, which nobody may touch
  static constexpr int64_t kMisplaced = 1;  // bytes
  static constexpr Word kUntouched = std::numeric_limits<Word>::max();

  static Word Get(const std::vector<std::byte>& bytes, int64_t index) {
    Word word;
    std::memcpy(&word, bytes.data() + kMisplaced + index * kBytes, kBytes);
    return word;
  }
  static void Set(std::vector<std::byte>& bytes, int64_t index, Word word) {
    std::memcpy(bytes.data() + kMisplaced + index * kBytes, &word, kBytes);
  }

  // Rows and columns with a gap after each row.
  static void Check(int64_t rows, int64_t cols) {
    SCOPED_TRACE(testing::Message() << rows << " x " << cols);
    const int64_t from_width = cols + kGap;
    const int64_t to_width = rows + kGap;
    std::vector<std::byte> from(kMisplaced + rows * from_width * kBytes);
    for (int64_t i = 0; i < rows * from_width; ++i) Set(from, i, static_cast<Word>(i));
    std::vector<std::byte> to(kMisplaced + cols * to_width * kBytes);
    for (int64_t i = 0; i < cols * to_width; ++i) Set(to, i, kUntouched);
    Transpose<Word>(from.data() + kMisplaced, from_width * kBytes, rows, cols,
                    to.data() + kMisplaced, to_width * kBytes);
    for (int64_t j = 0; j < cols; ++j) {
      for (int64_t i = 0; i < to_width; ++i) {
        const Word expected = i < rows ? static_cast<Word>(i * from_width + j) : kUntouched;
        ASSERT_EQ(Get(to, j * to_width + i), expected) << "row " << j << ", column " << i;
      }
    }
  }
};

using Words = testing::Types<uint16_t, uint32_t>;
TYPED_TEST_SUITE(TransposeTest, Words);

TYPED_TEST(TransposeTest, MovesEveryWordOfAllSmallSizes) {
  for (int64_t rows = 0; rows <= 20; ++rows) {
    for (int64_t cols = 0; cols <= 70; ++cols) this->Check(rows, cols);
  }
}

TYPED_TEST(TransposeTest, MovesEveryWordOfLongRowsAndColumns) {
  this->Check(16, 1003);
  this->Check(1003, 8);
  this->Check(129, 257);
}

TEST(TransposedMatrixTest, ATensorKeepsItsTypeAndExchangesItsSides) {
  const std::vector<uint16_t> halves = {1, 2, 3, 4, 5, 6};
  AlignedBuffer buffer(halves.size() * sizeof(uint16_t));
  std::memcpy(buffer.data(), halves.data(), buffer.size());
  const Tensor transposed = TransposedMatrix(Tensor(DType::kBF16, {2, 3}, std::move(buffer)));
  EXPECT_EQ(transposed.dtype(), DType::kBF16);
  EXPECT_EQ(transposed.shape(), (Shape{3, 2}));
  const std::vector<uint16_t> expected = {1, 4, 2, 5, 3, 6};
  ASSERT_EQ(transposed.bytes().size(), expected.size() * sizeof(uint16_t));
  EXPECT_EQ(std::memcmp(transposed.bytes().data(), expected.data(), transposed.bytes().size()), 0);
}

}  // namespace
}  // namespace adapterd
