// Where the tensors lie in a message.
#ifndef ADAPTERD_SERVICE_TENSOR_FIELDS_H_
#define ADAPTERD_SERVICE_TENSOR_FIELDS_H_

#include <google/protobuf/descriptor.h>

#include <memory>
#include <optional>
#include <vector>

namespace adapterd {

// The fields of one message type that lead to the `data` of a tensor. Read off the descriptor, so
// that no table has to follow the .proto files. Immutable; any thread.
class TensorFields {
 public:
  // Made once for each type and kept for good.
  template <typename Message>
  static const TensorFields& Of() {
    static const TensorFields fields = Create(*Message::descriptor()).value();
    return fields;
  }

  bool IsData(int number) const { return number == data_; }
  // What lies below the message field `number`; null when no tensor does.
  const TensorFields* Find(int number) const;

 private:
  struct Field {
    int number;
    std::unique_ptr<const TensorFields> below;
  };

  TensorFields() = default;
  static std::optional<TensorFields> Create(const google::protobuf::Descriptor& type);

  int data_ = 0;  // number of the field that holds the bytes; 0 when this is no tensor
  std::vector<Field> fields_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_TENSOR_FIELDS_H_
