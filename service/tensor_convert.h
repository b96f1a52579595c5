// Tensor messages to views and back.
#ifndef ADAPTERD_SERVICE_TENSOR_CONVERT_H_
#define ADAPTERD_SERVICE_TENSOR_CONVERT_H_

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "adapterd/v1/tensor.pb.h"
#include "core/tensor/buffer_pool.h"
#include "core/tensor/tensor.h"
#include "service/tensor_payloads.h"

namespace adapterd {

// A request's tensor of floats, checked. Views the message's own values and their payload where it
// can; both must outlive it. Movable.
class FloatTensor {
 public:
  // `field` is what errors call it: "input", "projections[1].base_output". Errors: INVALID_FIELD
  // (no or two contents, no dtype with data), SHAPE_MISMATCH, UNSUPPORTED_DTYPE (integers,
  // unknown).
  static absl::StatusOr<FloatTensor> Read(const v1::Tensor& message, const TensorPayloads& payloads,
                                          const std::string& field) {
    return Read(message, payloads.Find(message.data()), field);
  }
  // The same of a message that came through generated code alone.
  static absl::StatusOr<FloatTensor> Read(const v1::Tensor& message, const std::string& field) {
    return Read(message, std::as_bytes(std::span<const char>(message.data())), field);
  }

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  const std::byte* data() const { return data_; }
  std::span<const std::byte> bytes() const {
    return {data_, static_cast<size_t>(*ByteCount(dtype_, shape_))};
  }
  // The caller wrote f32_values and wants to read them in the reply.
  bool readable() const { return readable_; }

 private:
  static absl::StatusOr<FloatTensor> Read(const v1::Tensor& message,
                                          std::span<const std::byte> data,
                                          const std::string& field);

  DType dtype_ = DType::kF32;
  Shape shape_;
  const std::byte* data_ = nullptr;
  AlignedBuffer owned_;  // f32_values rounded to a half type
  bool readable_ = false;
};

// Whether the message holds integers, by its dtype or its contents.
bool HoldsIntegers(const v1::Tensor& message);

// A request's token ids, checked as far as one can without the embedding. Owns its values.
class IdTensor {
 public:
  // Errors as FloatTensor::Read; UNSUPPORTED_DTYPE for floats.
  static absl::StatusOr<IdTensor> Read(const v1::Tensor& message, const TensorPayloads& payloads,
                                       const std::string& field);

  const Shape& shape() const { return shape_; }
  const std::vector<int64_t>& values() const { return values_; }

 private:
  Shape shape_;
  std::vector<int64_t> values_;
};

// A reply's tensor while it is being filled. The message must outlive it.
class TensorWriter {
 public:
  // Gives `message` dtype and shape, and makes room. REQUIRES: the shape's byte count fits.
  TensorWriter(v1::Tensor& message, DType dtype, const Shape& shape, bool readable,
               BufferPool& pool);
  // The same, in the memory of `buffer`, which has the right size.
  TensorWriter(v1::Tensor& message, DType dtype, const Shape& shape, bool readable,
               PooledBuffer buffer);

  std::byte* data() { return buffer_.data(); }

  // Call once data() is filled: the message gets a ticket for it, or readable values.
  void Finish(TensorPayloads& payloads);

 private:
  v1::Tensor& message_;
  const DType dtype_;
  const bool readable_;
  PooledBuffer buffer_;
};

// What a tensor has besides its content.
void SetTypeAndShape(DType dtype, const Shape& shape, v1::Tensor& message);

v1::DataType ToProto(DType dtype);

// The float type that `type` names; UNSUPPORTED_DTYPE for anything else. `field`: as above.
absl::StatusOr<DType> FloatTypeFromProto(v1::DataType type, const std::string& field);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_TENSOR_CONVERT_H_
