// An adapter in memory: weights, packed forms and the reservation that pays for them.
#ifndef ADAPTERD_CORE_REGISTRY_LOADED_ADAPTER_H_
#define ADAPTERD_CORE_REGISTRY_LOADED_ADAPTER_H_

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/adapter/adapter.h"
#include "core/compute/packed_pair.h"
#include "core/registry/memory_budget.h"

namespace adapterd {

// Owns weights and reservation with one lifetime: the last user frees both, so the budget and the
// memory always agree. Immutable but for packed forms that are added on first use.
//
// Threads: all methods from any thread. The destructor runs on whichever thread lets go last.
class LoadedAdapter {
 public:
  // What Create needs reserved: the stored factors and one packed form.
  static absl::StatusOr<int64_t> BytesFor(const Kernels& kernels, const AdapterManifest& manifest);

  // Packs the form that inputs of the factors' own dtype need. `reservation` holds BytesFor bytes.
  static absl::StatusOr<std::shared_ptr<const LoadedAdapter>> Create(
      const Kernels& kernels, std::shared_ptr<MemoryBudget> budget,
      std::shared_ptr<const Adapter> adapter, Reservation reservation);
  ~LoadedAdapter();

  const Adapter& adapter() const { return *adapter_; }
  const AdapterManifest& manifest() const { return adapter_->manifest(); }

  // The module's factors for inputs of `input`'s dtype. The first call for a form that is not there
  // yet reserves and packs it, and fails with MEMORY_BUDGET_EXCEEDED when it does not fit. The
  // result lives as long as this.
  absl::StatusOr<const PackedPair*> Pair(size_t module, DType input) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  // All that is reserved for it now.
  int64_t memory_bytes() const { return memory_bytes_.load(std::memory_order_relaxed); }

  // `callback` runs after weights and reservation are gone, with the bytes given back, on the
  // thread that let go last. It must be quick and must not touch this object.
  using FreedCallback = absl::AnyInvocable<void(int64_t freed_bytes)>;
  void OnFreed(FreedCallback callback) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  static constexpr size_t kForms = 2;  // one for each ComputeType

  // `ready` is set once the form is in `owned`, so that readers need no lock.
  struct Slot {
    std::array<std::atomic<const PackedPair*>, kForms> ready{};
    std::array<std::unique_ptr<const PackedPair>, kForms> owned;  // guarded by the adapter's mutex_
  };

  LoadedAdapter(const Kernels& kernels, std::shared_ptr<MemoryBudget> budget,
                std::shared_ptr<const Adapter> adapter, Reservation reservation);
  absl::Status Pack(size_t module, ComputeType type) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Kernels& kernels_;
  const std::shared_ptr<MemoryBudget> budget_;
  std::shared_ptr<const Adapter> adapter_;  // constant until the destructor

  mutable std::atomic<int64_t> memory_bytes_;
  mutable std::vector<Slot> slots_;  // one a module; its size is constant

  mutable absl::Mutex mutex_;
  mutable std::vector<Reservation> reservations_ ABSL_GUARDED_BY(mutex_);
  mutable std::vector<FreedCallback> on_freed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_LOADED_ADAPTER_H_
