// Memory that is used again while it is still in the cache.
#ifndef ADAPTERD_CORE_ADAPTER_SPARE_BUFFERS_H_
#define ADAPTERD_CORE_ADAPTER_SPARE_BUFFERS_H_

#include <cstddef>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "core/tensor/aligned_buffer.h"

namespace adapterd {

// Buffers that were read into and are needed no more; the last one given is the first one taken.
// Holds at most as many as were ever in use at once. Threads: all methods from any thread.
class SpareBuffers {
 public:
  // Larger ones leave the cache anyway, and should not be held longer than they are needed.
  static constexpr size_t kMaxBytes = 1 << 20;

  // `size` bytes of whatever content.
  AlignedBuffer Take(size_t size) ABSL_LOCKS_EXCLUDED(mutex_) {
    AlignedBuffer spare = size <= kMaxBytes ? TakeLast() : AlignedBuffer();
    if (spare.capacity() >= size) return AlignedBuffer(std::move(spare), size);
    spare = {};  // free it first
    return AlignedBuffer(size);
  }

  void Give(AlignedBuffer buffer) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (buffer.capacity() == 0 || buffer.capacity() > kMaxBytes) return;
    absl::MutexLock lock(&mutex_);
    buffers_.push_back(std::move(buffer));
  }

 private:
  AlignedBuffer TakeLast() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (buffers_.empty()) return {};
    AlignedBuffer last = std::move(buffers_.back());
    buffers_.pop_back();
    return last;
  }

  absl::Mutex mutex_;
  std::vector<AlignedBuffer> buffers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_SPARE_BUFFERS_H_
