// Messages with large tensors, between gRPC's buffers and generated code.
//
// Generated code would copy a tensor's bytes twice, into memory without pages. Here they are copied
// once, from the pieces that came over the wire into aligned memory of a pool, and replies are sent
// from such memory as it is. All the rest of a message goes through generated code as always, so
// that the wire format is that of the .proto files (protobuf.dev/programming-guides/encoding).
#ifndef ADAPTERD_SERVICE_TENSOR_MESSAGE_H_
#define ADAPTERD_SERVICE_TENSOR_MESSAGE_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "core/tensor/buffer_pool.h"
#include "service/tensor_fields.h"
#include "service/tensor_payloads.h"

namespace adapterd {

// `bytes` as a message whose tensors' bytes lie in `payloads`. Accepts what generated code accepts,
// with the same values. INVALID_FIELD when it is no such message. `message` and `payloads` are
// empty before; `fields` are those of the message's type.
absl::Status SplitMessage(const grpc::ByteBuffer& bytes, const TensorFields& fields,
                          BufferPool& pool, google::protobuf::Message& message,
                          TensorPayloads& payloads);

// The reverse. The result holds on to the payloads' memory, not to the pool.
grpc::ByteBuffer JoinMessage(const google::protobuf::Message& message, const TensorFields& fields,
                             TensorPayloads payloads);

// A message of one type with its payloads.
template <typename Message>
struct TensorMessage {
  Message message;
  TensorPayloads payloads;

  absl::Status Split(const grpc::ByteBuffer& bytes, BufferPool& pool) {
    return SplitMessage(bytes, TensorFields::Of<Message>(), pool, message, payloads);
  }
  grpc::ByteBuffer Join() && {
    return JoinMessage(message, TensorFields::Of<Message>(), std::move(payloads));
  }
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_TENSOR_MESSAGE_H_
