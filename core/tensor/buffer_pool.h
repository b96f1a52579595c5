// Buffers that are used again: memory that has its pages already is several times faster to fill.
#ifndef ADAPTERD_CORE_TENSOR_BUFFER_POOL_H_
#define ADAPTERD_CORE_TENSOR_BUFFER_POOL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "core/tensor/aligned_buffer.h"

namespace adapterd {

class PooledBuffer;

// Keeps what is given back, up to a limit, beyond which it frees what was idle longest. Any thread.
// Cost: a short lock; a buffer of a size that nobody gave back costs an allocation.
class BufferPool {
 public:
  explicit BufferPool(int64_t max_idle_bytes);
  ~BufferPool();

  // `size` uninitialised bytes on a 64-byte boundary, at most a quarter of them wasted above 16
  // KiB. May outlive the pool. Throws std::bad_alloc.
  PooledBuffer Take(size_t size);

  // Frees what nobody uses now.
  void DropIdle();

  int64_t idle_bytes() const;
  int64_t used_bytes() const;

 private:
  friend class PooledBuffer;
  class Shelves;
  const std::shared_ptr<Shelves> shelves_;
};

// Owns bytes of a pool and gives them back. Movable; not thread-safe by itself.
class PooledBuffer {
 public:
  PooledBuffer() = default;
  ~PooledBuffer();
  PooledBuffer(PooledBuffer&& other) noexcept = default;
  PooledBuffer& operator=(PooledBuffer&& other) noexcept;

  std::byte* data() { return buffer_.data(); }
  const std::byte* data() const { return buffer_.data(); }
  size_t size() const { return buffer_.size(); }
  std::span<const std::byte> span() const { return buffer_.span(); }

 private:
  friend class BufferPool;
  PooledBuffer(std::shared_ptr<BufferPool::Shelves> shelves, AlignedBuffer buffer)
      : shelves_(std::move(shelves)), buffer_(std::move(buffer)) {}

  std::shared_ptr<BufferPool::Shelves> shelves_;  // null: holds nothing
  AlignedBuffer buffer_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_TENSOR_BUFFER_POOL_H_
