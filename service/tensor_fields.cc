#include "service/tensor_fields.h"

#include <utility>

#include "adapterd/v1/tensor.pb.h"

namespace adapterd {

std::optional<TensorFields> TensorFields::Create(const google::protobuf::Descriptor& type) {
  TensorFields result;
  if (&type == v1::Tensor::descriptor()) {
    result.data_ = v1::Tensor::kDataFieldNumber;
    return result;
  }
  // Message types of the data plane hold no map of messages and never themselves.
  for (int i = 0; i < type.field_count(); ++i) {
    const google::protobuf::FieldDescriptor& field = *type.field(i);
    if (field.message_type() == nullptr) continue;
    std::optional<TensorFields> below = Create(*field.message_type());
    if (!below) continue;
    result.fields_.push_back(
        {field.number(), std::make_unique<const TensorFields>(*std::move(below))});
  }
  if (result.fields_.empty()) return std::nullopt;
  return result;
}

const TensorFields* TensorFields::Find(int number) const {
  for (const Field& field : fields_) {
    if (field.number == number) return field.below.get();
  }
  return nullptr;
}

}  // namespace adapterd
