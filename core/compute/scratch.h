// Working memory that a thread keeps between calls.
#ifndef ADAPTERD_CORE_COMPUTE_SCRATCH_H_
#define ADAPTERD_CORE_COMPUTE_SCRATCH_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/tensor/aligned_buffer.h"

namespace adapterd {

// Bytes that callers size their blocks by, so that a thread keeps a few megabytes. Only a single
// row that is wider than this takes more.
inline constexpr int64_t kScratchBytes = 4 << 20;

// One growing buffer per purpose. Owned by its thread.
class Scratch {
 public:
  enum Slot {
    kBlocks,
    kInputF32,
    kInputBF16,
    kLowRank,
    kWideLowRank,
    kWideFactor,
    kSums,
    kWeightF32,
    kWeightBF16,
    kSlots
  };

  static Scratch& OfThisThread() {
    thread_local Scratch scratch;
    return scratch;
  }

  // At least `count` elements, cache-line aligned. What the slot held before is lost when it grows.
  template <typename T>
  T* Get(Slot slot, int64_t count) {
    AlignedBuffer& buffer = buffers_[slot];
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (buffer.size() < bytes) {
      buffer = {};  // free the old one first
      buffer = AlignedBuffer{bytes};
    }
    return reinterpret_cast<T*>(buffer.data());
  }

 private:
  std::array<AlignedBuffer, kSlots> buffers_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPUTE_SCRATCH_H_
