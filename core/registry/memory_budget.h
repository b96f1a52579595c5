// The bytes that adapters and base models may hold together, and who holds them.
#ifndef ADAPTERD_CORE_REGISTRY_MEMORY_BUDGET_H_
#define ADAPTERD_CORE_REGISTRY_MEMORY_BUDGET_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace adapterd {

class MemoryBudget;

// What memory is reserved for. Adapters may go to make room, base models never.
enum class MemoryKind { kAdapters, kBaseModels };
inline constexpr size_t kMemoryKinds = 2;

// Bytes taken from a budget, given back by the destructor. Movable; one owner at a time.
class Reservation {
 public:
  Reservation() = default;
  ~Reservation() { Release(); }
  Reservation(Reservation&& other) noexcept
      : budget_(std::move(other.budget_)),
        bytes_(std::exchange(other.bytes_, 0)),
        kind_(other.kind_) {}
  Reservation& operator=(Reservation&& other) noexcept;

  int64_t bytes() const { return bytes_; }
  void Release();

 private:
  friend class MemoryBudget;
  Reservation(std::shared_ptr<MemoryBudget> budget, int64_t bytes, MemoryKind kind)
      : budget_(std::move(budget)), bytes_(bytes), kind_(kind) {}

  std::shared_ptr<MemoryBudget> budget_;
  int64_t bytes_ = 0;
  MemoryKind kind_ = MemoryKind::kAdapters;
};

// Any thread may call any method. Reserve before allocating: used() never exceeds limit(), except
// after the limit was lowered.
class MemoryBudget : public std::enable_shared_from_this<MemoryBudget> {
 public:
  // Frees something when a reservation lacks `missing` bytes; false when there is nothing to free.
  using Reclaimer = std::function<bool(int64_t missing)>;

  static std::shared_ptr<MemoryBudget> Create(int64_t limit_bytes);

  // Asks the reclaimer for room as long as that helps. MEMORY_BUDGET_EXCEEDED with needed_bytes,
  // used_bytes and budget_bytes when it does not fit. REQUIRES: bytes >= 0.
  absl::StatusOr<Reservation> Reserve(int64_t bytes, MemoryKind kind = MemoryKind::kAdapters)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // The same without asking anybody.
  absl::StatusOr<Reservation> TryReserve(int64_t bytes, MemoryKind kind = MemoryKind::kAdapters)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // What Reserve says of `bytes` that do not fit.
  absl::Status Exceeded(int64_t bytes) const ABSL_LOCKS_EXCLUDED(mutex_);

  // `reclaim` runs on the thread that reserves, under no lock of this class; `freed` after bytes
  // came back. Both must be there before other threads are, and until Detach.
  void Attach(Reclaimer reclaim, std::function<void()> freed) ABSL_LOCKS_EXCLUDED(mutex_);
  void Detach() ABSL_LOCKS_EXCLUDED(mutex_) { Attach(nullptr, nullptr); }

  void SetLimit(int64_t limit_bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t limit() const ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t used() const ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t used(MemoryKind kind) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class Reservation;
  explicit MemoryBudget(int64_t limit_bytes) : limit_(limit_bytes) {}
  void GiveBack(int64_t bytes, MemoryKind kind) ABSL_LOCKS_EXCLUDED(mutex_);

  mutable absl::Mutex mutex_;
  int64_t limit_ ABSL_GUARDED_BY(mutex_);
  int64_t used_ ABSL_GUARDED_BY(mutex_) = 0;
  std::array<int64_t, kMemoryKinds> used_by_kind_ ABSL_GUARDED_BY(mutex_) = {};  // used_ is the sum
  std::shared_ptr<const Reclaimer> reclaim_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const std::function<void()>> freed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_MEMORY_BUDGET_H_
