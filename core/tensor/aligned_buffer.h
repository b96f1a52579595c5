// Bytes that start on a cache line.
#ifndef ADAPTERD_CORE_TENSOR_ALIGNED_BUFFER_H_
#define ADAPTERD_CORE_TENSOR_ALIGNED_BUFFER_H_

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <utility>

#include "core/base/checked_math.h"

namespace adapterd {

inline constexpr size_t kBufferAlignment = 64;

// Owns `size` uninitialised bytes on a 64-byte boundary. Movable, not thread-safe by itself.
// Throws std::bad_alloc like new: callers reserve in the memory budget before they allocate.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t size) : size_(size), capacity_(size) {
    if (size == 0) return;
    auto* bytes = static_cast<std::byte*>(
        std::aligned_alloc(kBufferAlignment, RoundUp(size, kBufferAlignment)));
    if (bytes == nullptr) throw std::bad_alloc();
    bytes_.reset(bytes);
  }

  // The memory of `spare`, of which `size` bytes are in use. REQUIRES: size <= spare.capacity().
  AlignedBuffer(AlignedBuffer spare, size_t size)
      : bytes_(std::move(spare.bytes_)), size_(size), capacity_(spare.capacity_) {}

  std::byte* data() { return bytes_.get(); }
  const std::byte* data() const { return bytes_.get(); }
  size_t size() const { return size_; }
  // Bytes of memory: of an own buffer its size, and none once it was moved from.
  size_t capacity() const { return bytes_ == nullptr ? 0 : capacity_; }
  std::span<std::byte> span() { return {bytes_.get(), size_}; }
  std::span<const std::byte> span() const { return {bytes_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<std::byte, Free> bytes_;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_TENSOR_ALIGNED_BUFFER_H_
