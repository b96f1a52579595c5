#include "service/tensor_convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/error.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tensors.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<float> Values(const FloatTensor& tensor) {
  std::vector<float> values(*ElementCount(tensor.shape()));
  ConvertToF32(tensor.dtype(), tensor.data(), values.data(), static_cast<int64_t>(values.size()));
  return values;
}

TEST(TensorConvertTest, DataIsViewedWhereItIs) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const v1::Tensor message = DataTensor(dtype, {2, 2}, {1, -2, 0.5f, 4});
    ASSERT_OK_AND_ASSIGN(const FloatTensor tensor, FloatTensor::Read(message, "input"));
    EXPECT_EQ(tensor.dtype(), dtype);
    EXPECT_THAT(tensor.shape(), ElementsAre(2, 2));
    EXPECT_FALSE(tensor.readable());
    EXPECT_EQ(reinterpret_cast<const char*>(tensor.data()), message.data().data());
    EXPECT_THAT(Values(tensor), ElementsAre(1, -2, 0.5f, 4));
  }
}

TEST(TensorConvertTest, ReadableValuesAreRoundedToTheDtype) {
  // 1 + 2^-9 lies between the neighbours 1 and 1 + 2^-7 of BF16, nearer to 1.
  const v1::Tensor message = ReadableTensor(DType::kBF16, {2}, {1 + 0x1p-9f, 3});
  ASSERT_OK_AND_ASSIGN(const FloatTensor tensor, FloatTensor::Read(message, "input"));
  EXPECT_EQ(tensor.dtype(), DType::kBF16);
  EXPECT_TRUE(tensor.readable());
  EXPECT_THAT(Values(tensor), ElementsAre(1, 3));
}

TEST(TensorConvertTest, AMovedTensorKeepsItsRoundedValues) {
  const v1::Tensor message = ReadableTensor(DType::kF16, {2}, {0.5f, 3});
  ASSERT_OK_AND_ASSIGN(FloatTensor tensor, FloatTensor::Read(message, "input"));
  const FloatTensor moved = std::move(tensor);
  EXPECT_THAT(Values(moved), ElementsAre(0.5f, 3));
}

TEST(TensorConvertTest, AShapeWithoutElementsNeedsNoContent) {
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{0}, std::vector<int64_t>{5, 0}, std::vector<int64_t>{0, 1 << 30}}) {
    ASSERT_OK_AND_ASSIGN(const FloatTensor tensor,
                         FloatTensor::Read(EmptyTensor(DType::kF16, shape), "input"));
    EXPECT_EQ(*ElementCount(tensor.shape()), 0);
    EXPECT_FALSE(tensor.readable());
  }
}

TEST(TensorConvertTest, AScalarHasOneElement) {
  ASSERT_OK_AND_ASSIGN(const FloatTensor tensor,
                       FloatTensor::Read(DataTensor(DType::kF32, {}, {7}), "input"));
  EXPECT_TRUE(tensor.shape().empty());
}

TEST(TensorConvertTest, ErrorsNameTheField) {
  v1::Tensor message = DataTensor(DType::kF32, {2}, {1, 2});
  message.mutable_data()->pop_back();
  const absl::Status status = FloatTensor::Read(message, "projections[3].base_output").status();
  EXPECT_THAT(status, HasReason(Reason::kShapeMismatch));
  EXPECT_THAT(status, HasErrorMetadata("field", "projections[3].base_output"));
  EXPECT_THAT(status, HasMessage(HasSubstr("projections[3].base_output")));
  EXPECT_THAT(status, HasMessage(HasSubstr("[2]")));
}

TEST(TensorConvertTest, AWriterFillsDataOrReadableValues) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const bool readable : {false, true}) {
      v1::Tensor message;
      TensorWriter writer(message, dtype, {2, 1}, readable);
      const std::string bytes = BytesOf(dtype, {1.5f, -2});
      std::memcpy(writer.data(), bytes.data(), bytes.size());
      writer.Finish();
      EXPECT_EQ(message.dtype(), ToProto(dtype));
      EXPECT_THAT(message.shape(), ElementsAre(2, 1));
      if (readable) {
        EXPECT_THAT(message.f32_values(), ElementsAre(1.5f, -2));
        EXPECT_EQ(message.data(), "");
      } else {
        EXPECT_EQ(message.data(), bytes);
        EXPECT_EQ(message.f32_values_size(), 0);
      }
    }
  }
}

TEST(TensorConvertTest, AMovedWriterStillFinishes) {
  v1::Tensor messages[2];
  std::vector<TensorWriter> writers;
  for (v1::Tensor& message : messages) writers.emplace_back(message, DType::kF16, Shape{1}, true);
  const std::string bytes = BytesOf(DType::kF16, {0.25f});
  for (TensorWriter& writer : writers) {
    std::memcpy(writer.data(), bytes.data(), bytes.size());
    writer.Finish();
  }
  for (const v1::Tensor& message : messages) EXPECT_THAT(message.f32_values(), ElementsAre(0.25f));
}

TEST(TensorConvertTest, DtypesTravelThereAndBack) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    EXPECT_EQ(*FloatTypeFromProto(ToProto(dtype), "f"), dtype);
  }
  EXPECT_EQ(ToProto(DType::kF64), v1::DATA_TYPE_UNSPECIFIED);
  EXPECT_THAT(FloatTypeFromProto(v1::DATA_TYPE_UNSPECIFIED, "f"),
              HasReason(Reason::kUnsupportedDtype));
}

}  // namespace
}  // namespace adapterd
