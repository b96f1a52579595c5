#include "core/tensor/shape.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "core/tensor/aligned_buffer.h"
#include "core/tensor/convert.h"
#include "core/tensor/tensor.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

TEST(DTypeTest, NamesAndWidthsAreThoseOfSafetensors) {
  const std::vector<std::pair<std::string_view, int>> expected = {
      {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
      {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
      {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
      {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
      {"I64", 64},        {"U64", 64},
  };
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(DTypeName(dtype), expected[i].first);
    EXPECT_EQ(BitsOf(dtype), expected[i].second) << expected[i].first;
    EXPECT_EQ(DTypeFromName(expected[i].first), dtype);
  }
}

TEST(DTypeTest, OtherNamesAreUnknown) {
  for (std::string_view name : {"", "f32", "F33", "F32 ", "float32", "F3", "F8_E4M3FN"}) {
    EXPECT_EQ(DTypeFromName(name), std::nullopt) << name;
  }
}

TEST(DTypeTest, ThreeTypesCompute) {
  int count = 0;
  for (int i = 0; i <= static_cast<int>(DType::kU64); ++i) {
    const auto dtype = static_cast<DType>(i);
    if (!IsComputeFloat(dtype)) continue;
    ++count;
    EXPECT_EQ(FloatBytes(dtype) * 8, BitsOf(dtype));
  }
  EXPECT_EQ(count, 3);
}

TEST(ShapeTest, CountsElements) {
  EXPECT_EQ(*ElementCount(Shape{}), 1);
  EXPECT_EQ(*ElementCount(Shape{0}), 0);
  EXPECT_EQ(*ElementCount(Shape{2, 3, 4}), 24);
  EXPECT_EQ(*ElementCount(Shape{kMax}), kMax);
}

TEST(ShapeTest, NegativeDimensionsAreRefused) {
  EXPECT_THAT(ElementCount(Shape{2, -1}), HasReason(Reason::kShapeMismatch));
  EXPECT_THAT(ElementCount(Shape{0, -1}), HasReason(Reason::kShapeMismatch));
}

TEST(ShapeTest, OverflowIsRefusedFromLeftToRight) {
  EXPECT_THAT(ElementCount(Shape{kMax, 2}), HasReason(Reason::kShapeMismatch));
  EXPECT_THAT(ElementCount(Shape{kMax, 2, 0}), HasReason(Reason::kShapeMismatch));
  EXPECT_EQ(*ElementCount(Shape{0, kMax, kMax}), 0);
}

TEST(ShapeTest, CountsBytes) {
  EXPECT_EQ(*ByteCount(DType::kF32, Shape{8, 64}), 2048);
  EXPECT_EQ(*ByteCount(DType::kBF16, Shape{3}), 6);
  EXPECT_EQ(*ByteCount(DType::kF4, Shape{4}), 2);
  EXPECT_EQ(*ByteCount(DType::kF6E2M3, Shape{4}), 3);
  EXPECT_EQ(*ByteCount(DType::kU64, Shape{0, 5}), 0);
}

TEST(ShapeTest, PartsOfBytesAreRefused) {
  EXPECT_THAT(ByteCount(DType::kF4, Shape{3}), HasReason(Reason::kShapeMismatch));
  EXPECT_THAT(ByteCount(DType::kF6E3M2, Shape{3}), HasReason(Reason::kShapeMismatch));
}

TEST(ShapeTest, ByteOverflowIsRefused) {
  EXPECT_THAT(ByteCount(DType::kU64, Shape{kMax / 8}), HasReason(Reason::kShapeMismatch));
  EXPECT_THAT(ByteCount(DType::kU8, Shape{kMax}), HasReason(Reason::kShapeMismatch));
}

TEST(ShapeTest, ErrorsShowTheShape) {
  EXPECT_EQ(ShapeString(Shape{8, 64}), "[8, 64]");
  EXPECT_EQ(ShapeString(Shape{}), "[]");
  EXPECT_THAT(ElementCount(Shape{2, -1}), HasMessage(HasSubstr("[2, -1]")));
  EXPECT_THAT(ElementCount(Shape{2, -1}), HasErrorMetadata("actual", "[2, -1]"));
}

TEST(AlignedBufferTest, StartsOnACacheLine) {
  for (size_t size : {1, 63, 64, 65, 1000}) {
    AlignedBuffer buffer(size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kBufferAlignment, 0u);
    EXPECT_EQ(buffer.span().size(), size);
    buffer.data()[size - 1] = std::byte{1};
  }
}

TEST(AlignedBufferTest, AnEmptyOneHoldsNothing) {
  const AlignedBuffer buffer(0);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_TRUE(buffer.span().empty());
}

TEST(AlignedBufferTest, MovingKeepsTheBytesWhereTheyAre) {
  AlignedBuffer first(8);
  const std::byte* address = first.data();
  const AlignedBuffer second = std::move(first);
  EXPECT_EQ(second.data(), address);
  EXPECT_EQ(second.size(), 8u);
}

TEST(TensorTest, MatrixViewsShowTheSameBytes) {
  AlignedBuffer buffer(3 * 4 * sizeof(float));
  for (int i = 0; i < 12; ++i) {
    const auto value = static_cast<float>(i);
    ConvertFromF32(&value, DType::kF32, buffer.data() + i * sizeof(float), 1);
  }
  const Tensor tensor(DType::kF32, {3, 4}, std::move(buffer));
  const MatrixView matrix = AsMatrix(tensor);
  EXPECT_EQ(matrix.rows, 3);
  EXPECT_EQ(matrix.cols, 4);
  EXPECT_EQ(matrix.bytes(), static_cast<int64_t>(tensor.bytes().size()));
  const MatrixView rows = matrix.Rows(1, 2);
  EXPECT_EQ(rows.rows, 2);
  float first = 0;
  ConvertToF32(rows.dtype, rows.data, &first, 1);
  EXPECT_EQ(first, 4.0f);
}

}  // namespace
}  // namespace adapterd
