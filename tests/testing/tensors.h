// Tensor messages, made and read.
#ifndef ADAPTERD_TESTS_TESTING_TENSORS_H_
#define ADAPTERD_TESTS_TESTING_TENSORS_H_

#include <stdexcept>
#include <string>
#include <vector>

#include "adapterd/v1/tensor.pb.h"
#include "service/tensor_convert.h"
#include "tests/testing/peft_builder.h"

namespace adapterd {

inline v1::Tensor EmptyTensor(DType dtype, const std::vector<int64_t>& shape) {
  v1::Tensor tensor;
  tensor.set_dtype(ToProto(dtype));
  tensor.mutable_shape()->Assign(shape.begin(), shape.end());
  return tensor;
}

// With `values`, rounded to `dtype`, as bytes.
inline v1::Tensor DataTensor(DType dtype, const std::vector<int64_t>& shape,
                             const std::vector<float>& values) {
  v1::Tensor tensor = EmptyTensor(dtype, shape);
  tensor.set_data(BytesOf(dtype, values));
  return tensor;
}

// With `values` as they are, to be rounded by the server.
inline v1::Tensor ReadableTensor(DType dtype, const std::vector<int64_t>& shape,
                                 const std::vector<float>& values) {
  v1::Tensor tensor = EmptyTensor(dtype, shape);
  tensor.mutable_f32_values()->Assign(values.begin(), values.end());
  return tensor;
}

inline v1::Tensor MakeTensor(bool readable, DType dtype, const std::vector<int64_t>& shape,
                             const std::vector<float>& values) {
  return readable ? ReadableTensor(dtype, shape, values) : DataTensor(dtype, shape, values);
}

inline std::vector<int64_t> ShapeOf(const v1::Tensor& tensor) {
  return {tensor.shape().begin(), tensor.shape().end()};
}

inline DType DTypeOf(const v1::Tensor& tensor) {
  return FloatTypeFromProto(tensor.dtype(), "dtype").value();
}

// Whichever content it has.
inline std::vector<float> FloatsOf(const v1::Tensor& tensor) {
  if (tensor.f32_values_size() > 0) {
    return {tensor.f32_values().begin(), tensor.f32_values().end()};
  }
  return FloatsOf(DTypeOf(tensor), tensor.data());
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_TENSORS_H_
