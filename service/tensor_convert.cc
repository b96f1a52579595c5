#include "service/tensor_convert.h"

#include <fmt/format.h>

#include <cstring>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

constexpr int kMaxDimensions = 16;  // more than any framework's activations have

absl::Status FieldError(Reason reason, const std::string& field, const std::string& what) {
  return Error(reason, fmt::format("{}: {}", field, what)).With("field", field);
}

absl::Status LengthError(const std::string& field, const Shape& shape, DType dtype,
                         const std::string& unit, int64_t expected, int64_t actual) {
  return Error(Reason::kShapeMismatch,
               fmt::format("{}: shape {} of {} needs {} {}, found {}", field, ShapeString(shape),
                           DTypeName(dtype), expected, unit, actual))
      .With("field", field)
      .With("expected", expected)
      .With("actual", actual);
}

absl::StatusOr<DType> DTypeOf(const v1::Tensor& message, const std::string& field) {
  if (message.dtype() != v1::DATA_TYPE_UNSPECIFIED) {
    return FloatTypeFromProto(message.dtype(), field + ".dtype");
  }
  if (message.int64_values_size() > 0) return FloatTypeFromProto(v1::DATA_TYPE_I64, field);
  if (!message.data().empty()) {
    return FieldError(Reason::kUnsupportedDtype, field, "data needs a dtype");
  }
  return DType::kF32;
}

absl::StatusOr<Shape> ShapeOf(const v1::Tensor& message, const std::string& field) {
  if (message.shape_size() > kMaxDimensions) {
    return FieldError(Reason::kShapeMismatch, field,
                      fmt::format("expected at most {} dimensions, found {}", kMaxDimensions,
                                  message.shape_size()));
  }
  return Shape(message.shape().begin(), message.shape().end());
}

int ContentCount(const v1::Tensor& message) {
  return (message.data().empty() ? 0 : 1) + (message.f32_values_size() > 0 ? 1 : 0) +
         (message.int64_values_size() > 0 ? 1 : 0);
}

absl::Status CheckContents(const v1::Tensor& message, const std::string& field) {
  if (ContentCount(message) <= 1) return absl::OkStatus();
  return FieldError(Reason::kInvalidField, field,
                    "expected one of data, f32_values and int64_values, found several");
}

struct Size {
  int64_t elements = 0;
  int64_t bytes = 0;
};

absl::StatusOr<Size> SizeOf(DType dtype, const Shape& shape, const std::string& field) {
  absl::StatusOr<int64_t> elements = ElementCount(shape);
  absl::StatusOr<int64_t> bytes = ByteCount(dtype, shape);
  if (elements.ok() && bytes.ok()) return Size{*elements, *bytes};
  const absl::Status& error = elements.ok() ? bytes.status() : elements.status();
  const std::string why(error.message());
  return Annotate(FieldError(Reason::kShapeMismatch, field, why), "actual", ShapeString(shape));
}

template <typename Integer>
std::vector<int64_t> IntegersOf(std::span<const std::byte> data) {
  std::vector<Integer> values(data.size() / sizeof(Integer));
  if (values.empty()) return {};  // memcpy must not get its null pointer
  std::memcpy(values.data(), data.data(), values.size() * sizeof(Integer));
  return {values.begin(), values.end()};
}

}  // namespace

bool HoldsIntegers(const v1::Tensor& message) {
  return message.int64_values_size() > 0 || message.dtype() == v1::DATA_TYPE_I32 ||
         message.dtype() == v1::DATA_TYPE_I64;
}

absl::StatusOr<IdTensor> IdTensor::Read(const v1::Tensor& message, const TensorPayloads& payloads,
                                        const std::string& field) {
  RETURN_IF_ERROR(CheckContents(message, field));
  const bool is_i32 = message.dtype() == v1::DATA_TYPE_I32;
  const DType dtype = is_i32 ? DType::kI32 : DType::kI64;
  const bool is_float = !is_i32 && message.dtype() != v1::DATA_TYPE_I64 &&
                        message.dtype() != v1::DATA_TYPE_UNSPECIFIED;
  if (message.f32_values_size() > 0 || is_float) {
    return FieldError(Reason::kUnsupportedDtype, field, "expected token ids (I32 or I64)");
  }
  IdTensor tensor;
  ASSIGN_OR_RETURN(tensor.shape_, ShapeOf(message, field));
  ASSIGN_OR_RETURN(const Size size, SizeOf(dtype, tensor.shape_, field));
  if (message.int64_values_size() > 0) {
    if (message.int64_values_size() != size.elements) {
      return LengthError(field, tensor.shape_, dtype, "int64_values", size.elements,
                         message.int64_values_size());
    }
    tensor.values_.assign(message.int64_values().begin(), message.int64_values().end());
    return tensor;
  }
  const std::span<const std::byte> data = payloads.Find(message.data());
  const auto found = static_cast<int64_t>(data.size());
  if (found != size.bytes) {
    return LengthError(field, tensor.shape_, dtype, "bytes of data", size.bytes, found);
  }
  tensor.values_ = is_i32 ? IntegersOf<int32_t>(data) : IntegersOf<int64_t>(data);
  return tensor;
}

v1::DataType ToProto(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return v1::DATA_TYPE_F32;
    case DType::kF16:
      return v1::DATA_TYPE_F16;
    case DType::kBF16:
      return v1::DATA_TYPE_BF16;
    default:
      return v1::DATA_TYPE_UNSPECIFIED;
  }
}

absl::StatusOr<DType> FloatTypeFromProto(v1::DataType type, const std::string& field) {
  switch (type) {
    case v1::DATA_TYPE_F32:
      return DType::kF32;
    case v1::DATA_TYPE_F16:
      return DType::kF16;
    case v1::DATA_TYPE_BF16:
      return DType::kBF16;
    default: {
      const std::string& name = v1::DataType_Name(type);
      return FieldError(Reason::kUnsupportedDtype, field,
                        fmt::format("expected F32, F16 or BF16, found {}",
                                    name.empty() ? std::to_string(type) : name));
    }
  }
}

absl::StatusOr<FloatTensor> FloatTensor::Read(const v1::Tensor& message,
                                              std::span<const std::byte> data,
                                              const std::string& field) {
  const int contents = ContentCount(message);
  RETURN_IF_ERROR(CheckContents(message, field));
  FloatTensor tensor;
  ASSIGN_OR_RETURN(tensor.dtype_, DTypeOf(message, field));
  ASSIGN_OR_RETURN(tensor.shape_, ShapeOf(message, field));
  ASSIGN_OR_RETURN(const Size size, SizeOf(tensor.dtype_, tensor.shape_, field));
  if (message.int64_values_size() > 0) {
    return FieldError(Reason::kUnsupportedDtype, field, "expected floats, found int64_values");
  }
  tensor.readable_ = message.f32_values_size() > 0;
  if (!tensor.readable_) {
    const auto found = static_cast<int64_t>(data.size());
    if (contents == 0 && size.elements > 0) {
      return FieldError(Reason::kInvalidField, field,
                        fmt::format("shape {} needs data or f32_values, found neither",
                                    ShapeString(tensor.shape_)));
    }
    if (found != size.bytes) {
      return LengthError(field, tensor.shape_, tensor.dtype_, "bytes of data", size.bytes, found);
    }
    tensor.data_ = data.data();
    return tensor;
  }
  if (message.f32_values_size() != size.elements) {
    return LengthError(field, tensor.shape_, tensor.dtype_, "f32_values", size.elements,
                       message.f32_values_size());
  }
  if (tensor.dtype_ == DType::kF32) {
    tensor.data_ = reinterpret_cast<const std::byte*>(message.f32_values().data());
    return tensor;
  }
  tensor.owned_ = AlignedBuffer(size.bytes);
  ConvertFromF32(message.f32_values().data(), tensor.dtype_, tensor.owned_.data(), size.elements);
  tensor.data_ = tensor.owned_.data();
  return tensor;
}

void SetTypeAndShape(DType dtype, const Shape& shape, v1::Tensor& message) {
  message.set_dtype(ToProto(dtype));
  message.mutable_shape()->Assign(shape.begin(), shape.end());
}

TensorWriter::TensorWriter(v1::Tensor& message, DType dtype, const Shape& shape, bool readable,
                           BufferPool& pool)
    : TensorWriter(message, dtype, shape, readable,
                   pool.Take(static_cast<size_t>(*ByteCount(dtype, shape)))) {}

TensorWriter::TensorWriter(v1::Tensor& message, DType dtype, const Shape& shape, bool readable,
                           PooledBuffer buffer)
    : message_(message), dtype_(dtype), readable_(readable), buffer_(std::move(buffer)) {
  SetTypeAndShape(dtype, shape, message);
}

void TensorWriter::Finish(TensorPayloads& payloads) {
  if (buffer_.size() == 0) return;
  if (!readable_) {
    message_.set_data(payloads.Add(std::move(buffer_)));
    return;
  }
  const auto elements = static_cast<int64_t>(buffer_.size()) / FloatBytes(dtype_);
  message_.mutable_f32_values()->Resize(static_cast<int>(elements), 0);
  ConvertToF32(dtype_, buffer_.data(), message_.mutable_f32_values()->mutable_data(), elements);
}

}  // namespace adapterd
