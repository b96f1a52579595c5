#include "core/tensor/buffer_pool.h"

#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "core/base/checked_math.h"

namespace adapterd {
namespace {

constexpr size_t kSmallest = 4096;  // a page
constexpr size_t kStepsPerOctave = 4;
constexpr size_t kShelves = kStepsPerOctave * (64 - std::bit_width(kSmallest) + 1);

// The capacity of the smallest shelf that `size` fits on.
size_t CapacityFor(size_t size) {
  if (size <= kSmallest) return kSmallest;
  return RoundUp(size, std::bit_floor(size) / kStepsPerOctave);
}

size_t ShelfOf(size_t capacity) {
  const size_t octave = std::bit_floor(capacity);
  return kStepsPerOctave * (std::bit_width(capacity) - std::bit_width(kSmallest)) +
         (capacity - octave) / (octave / kStepsPerOctave);
}

}  // namespace

// Shared by the pool and by every buffer that is out.
class BufferPool::Shelves {
 public:
  explicit Shelves(int64_t max_idle_bytes) : max_idle_bytes_(max_idle_bytes) {}

  AlignedBuffer Take(size_t size) ABSL_LOCKS_EXCLUDED(mutex_) {
    const size_t capacity = CapacityFor(size);
    AlignedBuffer spare;
    {
      absl::MutexLock lock(&mutex_);
      std::vector<Idle>& shelf = shelves_[ShelfOf(capacity)];
      if (!shelf.empty()) {
        spare = std::move(shelf.back().buffer);
        shelf.pop_back();
        idle_bytes_ -= static_cast<int64_t>(capacity);
      }
      used_bytes_ += static_cast<int64_t>(capacity);
    }
    if (spare.capacity() > 0) return {std::move(spare), size};
    try {
      return {AlignedBuffer(capacity), size};
    } catch (const std::bad_alloc&) {
      absl::MutexLock lock(&mutex_);
      used_bytes_ -= static_cast<int64_t>(capacity);
      throw;
    }
  }

  void GiveBack(AlignedBuffer buffer) ABSL_LOCKS_EXCLUDED(mutex_) {
    const auto capacity = static_cast<int64_t>(buffer.capacity());
    std::vector<AlignedBuffer> dropped;  // freed after the lock
    absl::MutexLock lock(&mutex_);
    used_bytes_ -= capacity;
    if (capacity > max_idle_bytes_) {
      dropped.push_back(std::move(buffer));
      return;
    }
    while (idle_bytes_ + capacity > max_idle_bytes_) dropped.push_back(DropOldest());
    shelves_[ShelfOf(buffer.capacity())].push_back({std::move(buffer), ++clock_});
    idle_bytes_ += capacity;
  }

  void DropIdle() ABSL_LOCKS_EXCLUDED(mutex_) {
    std::vector<AlignedBuffer> dropped;  // freed after the lock
    absl::MutexLock lock(&mutex_);
    while (idle_bytes_ > 0) dropped.push_back(DropOldest());
  }

  int64_t idle_bytes() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return idle_bytes_;
  }
  int64_t used_bytes() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return used_bytes_;
  }

 private:
  struct Idle {
    AlignedBuffer buffer;
    uint64_t since = 0;  // of clock_
  };

  // REQUIRES: idle_bytes_ > 0.
  AlignedBuffer DropOldest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto age = [](const std::vector<Idle>& shelf) {
      return shelf.empty() ? ~uint64_t{0} : shelf.front().since;
    };
    std::vector<Idle>& shelf = *std::ranges::min_element(shelves_, {}, age);
    AlignedBuffer dropped = std::move(shelf.front().buffer);
    shelf.erase(shelf.begin());
    idle_bytes_ -= static_cast<int64_t>(dropped.capacity());
    return dropped;
  }

  const int64_t max_idle_bytes_;
  mutable absl::Mutex mutex_;
  std::array<std::vector<Idle>, kShelves> shelves_ ABSL_GUARDED_BY(mutex_);  // oldest first
  int64_t idle_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t clock_ ABSL_GUARDED_BY(mutex_) = 0;
};

BufferPool::BufferPool(int64_t max_idle_bytes)
    : shelves_(std::make_shared<Shelves>(max_idle_bytes)) {}

BufferPool::~BufferPool() = default;

PooledBuffer BufferPool::Take(size_t size) { return {shelves_, shelves_->Take(size)}; }

void BufferPool::DropIdle() { shelves_->DropIdle(); }

int64_t BufferPool::idle_bytes() const { return shelves_->idle_bytes(); }

int64_t BufferPool::used_bytes() const { return shelves_->used_bytes(); }

PooledBuffer::~PooledBuffer() {
  if (shelves_ != nullptr) shelves_->GiveBack(std::move(buffer_));
}

PooledBuffer& PooledBuffer::operator=(PooledBuffer&& other) noexcept {
  PooledBuffer taken(std::move(other));
  std::swap(shelves_, taken.shelves_);
  std::swap(buffer_, taken.buffer_);
  return *this;
}

}  // namespace adapterd
