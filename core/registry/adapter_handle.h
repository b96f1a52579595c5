// What requests hold of an adapter.
#ifndef ADAPTERD_CORE_REGISTRY_ADAPTER_HANDLE_H_
#define ADAPTERD_CORE_REGISTRY_ADAPTER_HANDLE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "core/registry/loaded_adapter.h"

namespace adapterd {

// Counters of one adapter name; shared by its revisions and by running requests.
struct AdapterUsage {
  std::atomic<int64_t> use_count{0};
  std::atomic<int64_t> in_flight{0};
  std::atomic<int64_t> last_use_unix_ns{0};  // 0: never
};

// Tells the registry that something was let go, when it waits for that. Any thread; costs the read
// of an atomic when nobody waits. Outlives the registry, with the last handle.
class ReleaseSignal {
 public:
  explicit ReleaseSignal(std::function<void()> wake) : wake_(std::move(wake)) {}

  // From now on wake runs after each release.
  void Want(bool wanted) { wanted_.store(wanted); }
  void Released() ABSL_LOCKS_EXCLUDED(mutex_);
  // wake neither runs nor will.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  std::atomic<bool> wanted_{false};
  absl::Mutex mutex_;
  std::function<void()> wake_ ABSL_GUARDED_BY(mutex_);
};

// One revision of one name in memory. Leases of equal content share the weights; the last of them
// frees them. Owned by the registry and by handles.
class AdapterLease {
 public:
  AdapterLease(std::shared_ptr<const LoadedAdapter> loaded,
               std::shared_ptr<const AdapterManifest> manifest)
      : loaded_(std::move(loaded)), manifest_(std::move(manifest)) {}
  ~AdapterLease();

  const std::shared_ptr<const LoadedAdapter>& loaded() const { return loaded_; }
  // Of this name's own source: equal content may come with other tensor names or another base.
  const std::shared_ptr<const AdapterManifest>& manifest() const { return manifest_; }

  // `callback` runs once this lease is gone, with the bytes that it gave back (0 while others share
  // the weights), on the thread that let go last. It must be quick.
  void OnFreed(absl::AnyInvocable<void(int64_t freed_bytes)> callback) const
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  std::shared_ptr<const LoadedAdapter> loaded_;
  const std::shared_ptr<const AdapterManifest> manifest_;
  mutable absl::Mutex mutex_;
  mutable std::vector<absl::AnyInvocable<void(int64_t)>> on_freed_ ABSL_GUARDED_BY(mutex_);
};

using LeasePtr = std::shared_ptr<const AdapterLease>;

// Keeps one revision alive and counts one use of it while it exists. Movable. Empty: for a disabled
// adapter that was to be skipped.
class AdapterHandle {
 public:
  AdapterHandle() = default;
  AdapterHandle(LeasePtr lease, std::shared_ptr<AdapterUsage> usage,
                std::shared_ptr<ReleaseSignal> signal);
  ~AdapterHandle();
  AdapterHandle(AdapterHandle&&) noexcept = default;
  AdapterHandle& operator=(AdapterHandle&& other) noexcept;  // lets go of what it held

  bool empty() const { return lease_ == nullptr; }
  const LoadedAdapter& operator*() const { return *lease_->loaded(); }
  const LoadedAdapter* operator->() const { return lease_->loaded().get(); }
  const AdapterManifest& manifest() const { return *lease_->manifest(); }

 private:
  LeasePtr lease_;
  std::shared_ptr<AdapterUsage> usage_;
  std::shared_ptr<ReleaseSignal> signal_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_ADAPTER_HANDLE_H_
