// The bytes of a message's tensors, kept apart from the message.
#ifndef ADAPTERD_SERVICE_TENSOR_PAYLOADS_H_
#define ADAPTERD_SERVICE_TENSOR_PAYLOADS_H_

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor/buffer_pool.h"

namespace adapterd {

// In the message each tensor's `data` holds a ticket instead of its bytes, so that generated code
// handles everything but those: what is set, repeated or overwritten comes out as it should.
// Tickets are made here alone, never by a client. Movable; not thread-safe.
class TensorPayloads {
 public:
  // The ticket for these bytes.
  std::string Add(PooledBuffer bytes);

  // What `data` of a tensor stands for: no bytes when it is empty. REQUIRES: a ticket of this, or
  // empty.
  std::span<std::byte> Find(std::string_view data);
  std::span<const std::byte> Find(std::string_view data) const;

  // The same, taken out. REQUIRES: a ticket.
  PooledBuffer Release(std::string_view data);

 private:
  std::vector<PooledBuffer> buffers_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_TENSOR_PAYLOADS_H_
