// A base model in memory.
#ifndef ADAPTERD_CORE_BASE_MODEL_HOSTED_BASE_H_
#define ADAPTERD_CORE_BASE_MODEL_HOSTED_BASE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/adapter/base_model_geometry.h"
#include "core/adapter/module_index.h"
#include "core/base_model/hosted_module.h"

namespace adapterd {

class HostedBase;

// One for each module; null: nothing is merged into it.
using Overlays = std::vector<std::shared_ptr<const MergedOverlay>>;

int64_t OverlayBytes(const Overlays& overlays);

// A module as it stands at one instant, and alive for as long as this is: an unload waits for it, a
// merge meanwhile does not show.
struct ModuleSnapshot {
  std::shared_ptr<const HostedBase> base;
  const HostedModule* module = nullptr;              // of `base`
  std::shared_ptr<const MergedOverlay> merged = {};  // null: nothing is merged into it

  // The weight as it is merged, or as it was loaded. nullopt: quantised and nothing merged.
  std::optional<MatrixView> weight() const;
  // The bias as it is merged, or as it was loaded; null: there is none.
  const Tensor* bias() const;
};

// Its modules are immutable; what is merged into them is replaced, module by module. Owns weights
// and reservation with one lifetime: the last user frees both. Made by LoadHostedBase.
//
// Threads: all methods from any thread; a snapshot costs a short lock. The destructor runs on
// whichever thread lets go last.
class HostedBase : public std::enable_shared_from_this<HostedBase> {
 public:
  HostedBase(std::string source, std::string fingerprint, BaseGeometry geometry,
             std::vector<HostedModule> modules, Reservation reservation);
  ~HostedBase();

  const std::string& source() const { return source_; }
  // SHA-256 over config and headers of the checkpoint, 64 hex digits.
  const std::string& fingerprint() const { return fingerprint_; }
  const BaseGeometry& geometry() const { return geometry_; }
  const std::vector<HostedModule>& modules() const { return modules_; }  // by path, bytewise
  const ModuleIndex& index() const { return index_; }                    // over modules()

  // As ModuleIndex::Find; what is not found, the base model does not have.
  absl::StatusOr<size_t> Find(const ModuleSelector& selector) const;

  ModuleSnapshot Snapshot(size_t module) const ABSL_LOCKS_EXCLUDED(mutex_);
  // As they stand at one instant.
  Overlays overlays() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Puts `overlays` in the place of those of `modules`, all at once. What they replace is let go on
  // this thread. One change at a time: its caller sees to that (HostedBases).
  void Replace(const std::vector<size_t>& modules, Overlays overlays) ABSL_LOCKS_EXCLUDED(mutex_);

  // A number that no other base model of this process has.
  uint64_t instance() const { return instance_; }

  // Without overlays.
  int64_t base_bytes() const { return reservation_.bytes(); }

  // `callback` runs once this is gone, with the bytes that it gave back, on the thread that let go
  // last. It must be quick.
  void OnFreed(absl::AnyInvocable<void(int64_t freed_bytes)> callback) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const std::string source_;
  const std::string fingerprint_;
  const BaseGeometry geometry_;
  const uint64_t instance_;
  Reservation reservation_;
  std::vector<HostedModule> modules_;  // constant until the destructor
  const ModuleIndex index_;

  mutable absl::Mutex mutex_;
  Overlays overlays_ ABSL_GUARDED_BY(mutex_);
  std::vector<absl::AnyInvocable<void(int64_t)>> on_freed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_HOSTED_BASE_H_
