#include "core/registry/adapter_handle.h"

#include "absl/time/clock.h"

namespace adapterd {

void ReleaseSignal::Released() {
  if (!wanted_.load()) return;
  absl::MutexLock lock(&mutex_);
  if (wake_) wake_();
}

void ReleaseSignal::Close() {
  absl::MutexLock lock(&mutex_);
  wake_ = nullptr;
}

AdapterLease::~AdapterLease() {
  const int64_t freed = LoadedAdapter::LetGo(std::move(loaded_));
  std::vector<absl::AnyInvocable<void(int64_t)>> callbacks;
  {
    absl::MutexLock lock(&mutex_);
    callbacks.swap(on_freed_);
  }
  for (auto& callback : callbacks) callback(freed);
}

void AdapterLease::OnFreed(absl::AnyInvocable<void(int64_t)> callback) const {
  absl::MutexLock lock(&mutex_);
  on_freed_.push_back(std::move(callback));
}

AdapterHandle::AdapterHandle(LeasePtr lease, std::shared_ptr<AdapterUsage> usage,
                             std::shared_ptr<ReleaseSignal> signal)
    : lease_(std::move(lease)), usage_(std::move(usage)), signal_(std::move(signal)) {
  usage_->use_count.fetch_add(1, std::memory_order_relaxed);
  usage_->in_flight.fetch_add(1, std::memory_order_relaxed);
  usage_->last_use_unix_ns.store(absl::GetCurrentTimeNanos(), std::memory_order_relaxed);
}

AdapterHandle& AdapterHandle::operator=(AdapterHandle&& other) noexcept {
  AdapterHandle taken(std::move(other));
  lease_.swap(taken.lease_);
  usage_.swap(taken.usage_);
  signal_.swap(taken.signal_);
  return *this;
}

AdapterHandle::~AdapterHandle() {
  if (lease_ == nullptr) return;
  usage_->in_flight.fetch_sub(1, std::memory_order_relaxed);
  lease_.reset();
  signal_->Released();
}

}  // namespace adapterd
