#include "service/tensor_convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>

#include "core/base/error.h"
#include "service/tensor_message.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tensors.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Reads tensors as they come over the wire, and keeps them as long as what views them.
class TensorConvertTest : public ::testing::Test {
 protected:
  const TensorMessage<v1::Tensor>& Receive(const v1::Tensor& message) {
    const grpc::Slice slice(message.SerializeAsString());
    TensorMessage<v1::Tensor>& received = received_.emplace_back();
    EXPECT_THAT(received.Split(grpc::ByteBuffer(&slice, 1), pool_), IsOk());
    return received;
  }
  absl::StatusOr<FloatTensor> ReadFloats(const v1::Tensor& message,
                                         const std::string& field = "input") {
    const TensorMessage<v1::Tensor>& received = Receive(message);
    return FloatTensor::Read(received.message, received.payloads, field);
  }
  absl::StatusOr<IdTensor> ReadIds(const v1::Tensor& message) {
    const TensorMessage<v1::Tensor>& received = Receive(message);
    return IdTensor::Read(received.message, received.payloads, "input");
  }

  BufferPool pool_{1 << 20};

 private:
  std::deque<TensorMessage<v1::Tensor>> received_;
};

std::vector<float> Values(const FloatTensor& tensor) {
  std::vector<float> values(*ElementCount(tensor.shape()));
  ConvertToF32(tensor.dtype(), tensor.data(), values.data(), static_cast<int64_t>(values.size()));
  return values;
}

TEST_F(TensorConvertTest, DataIsViewedWhereItIs) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const auto& received = Receive(DataTensor(dtype, {2, 2}, {1, -2, 0.5f, 4}));
    ASSERT_OK_AND_ASSIGN(const FloatTensor tensor,
                         FloatTensor::Read(received.message, received.payloads, "input"));
    EXPECT_EQ(tensor.dtype(), dtype);
    EXPECT_THAT(tensor.shape(), ElementsAre(2, 2));
    EXPECT_FALSE(tensor.readable());
    EXPECT_EQ(tensor.data(), received.payloads.Find(received.message.data()).data());
    EXPECT_THAT(Values(tensor), ElementsAre(1, -2, 0.5f, 4));
  }
}

TEST_F(TensorConvertTest, ReadableValuesAreRoundedToTheDtype) {
  // 1 + 2^-9 lies between the neighbours 1 and 1 + 2^-7 of BF16, nearer to 1.
  const v1::Tensor message = ReadableTensor(DType::kBF16, {2}, {1 + 0x1p-9f, 3});
  ASSERT_OK_AND_ASSIGN(const FloatTensor tensor, ReadFloats(message));
  EXPECT_EQ(tensor.dtype(), DType::kBF16);
  EXPECT_TRUE(tensor.readable());
  EXPECT_THAT(Values(tensor), ElementsAre(1, 3));
}

TEST_F(TensorConvertTest, AMovedTensorKeepsItsRoundedValues) {
  const v1::Tensor message = ReadableTensor(DType::kF16, {2}, {0.5f, 3});
  ASSERT_OK_AND_ASSIGN(FloatTensor tensor, ReadFloats(message));
  const FloatTensor moved = std::move(tensor);
  EXPECT_THAT(Values(moved), ElementsAre(0.5f, 3));
}

TEST_F(TensorConvertTest, AShapeWithoutElementsNeedsNoContent) {
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{0}, std::vector<int64_t>{5, 0}, std::vector<int64_t>{0, 1 << 30}}) {
    ASSERT_OK_AND_ASSIGN(const FloatTensor tensor, ReadFloats(EmptyTensor(DType::kF16, shape)));
    EXPECT_EQ(*ElementCount(tensor.shape()), 0);
    EXPECT_FALSE(tensor.readable());
  }
}

TEST_F(TensorConvertTest, AScalarHasOneElement) {
  ASSERT_OK_AND_ASSIGN(const FloatTensor tensor, ReadFloats(DataTensor(DType::kF32, {}, {7})));
  EXPECT_TRUE(tensor.shape().empty());
}

TEST_F(TensorConvertTest, ErrorsNameTheField) {
  v1::Tensor message = DataTensor(DType::kF32, {2}, {1, 2});
  message.mutable_data()->pop_back();
  const absl::Status status = ReadFloats(message, "projections[3].base_output").status();
  EXPECT_THAT(status, HasReason(Reason::kShapeMismatch));
  EXPECT_THAT(status, HasErrorMetadata("field", "projections[3].base_output"));
  EXPECT_THAT(status, HasMessage(HasSubstr("projections[3].base_output")));
  EXPECT_THAT(status, HasMessage(HasSubstr("[2]")));
}

v1::Tensor IdsMessage(v1::DataType dtype, const std::vector<int64_t>& shape,
                      const std::vector<int64_t>& values) {
  v1::Tensor message;
  message.set_dtype(dtype);
  message.mutable_shape()->Assign(shape.begin(), shape.end());
  message.mutable_int64_values()->Assign(values.begin(), values.end());
  return message;
}

// The same as little-endian bytes.
template <typename Integer>
v1::Tensor IdsData(v1::DataType dtype, const std::vector<int64_t>& shape,
                   const std::vector<Integer>& values) {
  v1::Tensor message = IdsMessage(dtype, shape, {});
  message.mutable_data()->resize(values.size() * sizeof(Integer));
  std::memcpy(message.mutable_data()->data(), values.data(), message.data().size());
  return message;
}

TEST_F(TensorConvertTest, IdsComeInEveryForm) {
  const std::vector<v1::Tensor> messages = {IdsMessage(v1::DATA_TYPE_UNSPECIFIED, {2, 1}, {7, -1}),
                                            IdsMessage(v1::DATA_TYPE_I64, {2, 1}, {7, -1}),
                                            IdsMessage(v1::DATA_TYPE_I32, {2, 1}, {7, -1}),
                                            IdsData<int64_t>(v1::DATA_TYPE_I64, {2, 1}, {7, -1}),
                                            IdsData<int32_t>(v1::DATA_TYPE_I32, {2, 1}, {7, -1})};
  for (const v1::Tensor& message : messages) {
    SCOPED_TRACE(message.ShortDebugString());
    EXPECT_TRUE(HoldsIntegers(message));
    ASSERT_OK_AND_ASSIGN(const IdTensor tensor, ReadIds(message));
    EXPECT_THAT(tensor.shape(), ElementsAre(2, 1));
    EXPECT_THAT(tensor.values(), ElementsAre(7, -1));
  }
  EXPECT_FALSE(HoldsIntegers(DataTensor(DType::kF32, {1}, {1})));
  EXPECT_FALSE(HoldsIntegers(ReadableTensor(DType::kF16, {1}, {1})));
  ASSERT_OK_AND_ASSIGN(const IdTensor scalar, ReadIds(IdsMessage(v1::DATA_TYPE_I64, {}, {3})));
  EXPECT_TRUE(scalar.shape().empty());
  ASSERT_OK_AND_ASSIGN(const IdTensor none, ReadIds(IdsMessage(v1::DATA_TYPE_I64, {0}, {})));
  EXPECT_TRUE(none.values().empty());
}

TEST_F(TensorConvertTest, WrongIdsAreRefused) {
  v1::Tensor both = IdsData<int64_t>(v1::DATA_TYPE_I64, {1}, {3});
  both.add_int64_values(3);
  v1::Tensor cut = IdsData<int64_t>(v1::DATA_TYPE_I64, {1}, {3});
  cut.mutable_data()->pop_back();
  v1::Tensor readable = ReadableTensor(DType::kF32, {1}, {1});
  readable.set_dtype(v1::DATA_TYPE_I64);
  const std::pair<v1::Tensor, Reason> cases[] = {
      {both, Reason::kInvalidField},
      {cut, Reason::kShapeMismatch},
      {IdsData<int32_t>(v1::DATA_TYPE_I64, {1}, {3}), Reason::kShapeMismatch},
      {IdsMessage(v1::DATA_TYPE_I64, {2}, {3}), Reason::kShapeMismatch},
      {IdsMessage(v1::DATA_TYPE_I64, {-1}, {3}), Reason::kShapeMismatch},
      {IdsMessage(v1::DATA_TYPE_I64, {INT64_MAX, 2}, {3}), Reason::kShapeMismatch},
      {IdsMessage(v1::DATA_TYPE_I64, std::vector<int64_t>(17, 1), {3}), Reason::kShapeMismatch},
      {readable, Reason::kUnsupportedDtype},
      {IdsMessage(v1::DATA_TYPE_F32, {1}, {3}), Reason::kUnsupportedDtype},
      {DataTensor(DType::kF32, {1}, {3}), Reason::kUnsupportedDtype}};
  for (const auto& [message, reason] : cases) {
    SCOPED_TRACE(message.ShortDebugString());
    EXPECT_THAT(ReadIds(message), HasReason(reason));
  }
}

TEST_F(TensorConvertTest, AWriterFillsDataOrReadableValues) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const bool readable : {false, true}) {
      v1::Tensor message;
      TensorPayloads payloads;
      TensorWriter writer(message, dtype, {2, 1}, readable, pool_);
      const std::string bytes = BytesOf(dtype, {1.5f, -2});
      std::memcpy(writer.data(), bytes.data(), bytes.size());
      writer.Finish(payloads);
      EXPECT_EQ(message.dtype(), ToProto(dtype));
      EXPECT_THAT(message.shape(), ElementsAre(2, 1));
      if (readable) {
        EXPECT_THAT(message.f32_values(), ElementsAre(1.5f, -2));
        EXPECT_EQ(message.data(), "");
      } else {
        const auto data = payloads.Find(message.data());
        EXPECT_EQ(std::string(reinterpret_cast<const char*>(data.data()), data.size()), bytes);
        EXPECT_EQ(message.f32_values_size(), 0);
      }
    }
  }
}

TEST_F(TensorConvertTest, AMovedWriterStillFinishes) {
  v1::Tensor messages[2];
  std::vector<TensorWriter> writers;
  for (v1::Tensor& message : messages) {
    writers.emplace_back(message, DType::kF16, Shape{1}, true, pool_);
  }
  TensorPayloads payloads;
  const std::string bytes = BytesOf(DType::kF16, {0.25f});
  for (TensorWriter& writer : writers) {
    std::memcpy(writer.data(), bytes.data(), bytes.size());
    writer.Finish(payloads);
  }
  for (const v1::Tensor& message : messages) EXPECT_THAT(message.f32_values(), ElementsAre(0.25f));
}

TEST_F(TensorConvertTest, DtypesTravelThereAndBack) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    EXPECT_EQ(*FloatTypeFromProto(ToProto(dtype), "f"), dtype);
  }
  EXPECT_EQ(ToProto(DType::kF64), v1::DATA_TYPE_UNSPECIFIED);
  EXPECT_THAT(FloatTypeFromProto(v1::DATA_TYPE_UNSPECIFIED, "f"),
              HasReason(Reason::kUnsupportedDtype));
}

}  // namespace
}  // namespace adapterd
