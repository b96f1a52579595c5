// The base models of this process, by name.
#ifndef ADAPTERD_CORE_BASE_MODEL_HOSTED_BASES_H_
#define ADAPTERD_CORE_BASE_MODEL_HOSTED_BASES_H_

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/adapter/base_tensors.h"
#include "core/base/strand.h"
#include "core/base_model/base_merge.h"
#include "core/base_model/load_base.h"

namespace adapterd {

// A base model under its name.
struct NamedBase {
  std::string name;
  std::shared_ptr<HostedBase> base;
};

// Base models are not remembered over a restart, and never evicted: whoever loaded one unloads it.
//
// Threads: every method from any thread. The lock is held for looking things up alone.
class HostedBases {
 public:
  // All outlive it, and what its Change queues.
  HostedBases(std::shared_ptr<const SourceRoots> models, std::shared_ptr<MemoryBudget> budget,
              const Kernels& kernels, ThreadPool& io_pool, ThreadPool& workers);

  // On the calling thread, which waits for the disk, and idle I/O threads. A name that is in use
  // with an equal request, whose source still has the same fingerprint, is a no-op; else
  // BASE_MODEL_EXISTS, also while another load of the name runs. Errors of LoadHostedBase.
  absl::StatusOr<NamedBase> Load(const BaseLoadRequest& request, const Cancellation& cancellation)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Takes the name out of service, with all that is merged. `freed` runs when the last user has let
  // go and the memory is free, with the bytes. BASE_MODEL_NOT_FOUND: then it does not run.
  absl::Status Unload(const std::string& name, absl::AnyInvocable<void(int64_t)> freed)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // BASE_MODEL_NOT_FOUND.
  absl::StatusOr<NamedBase> Find(const std::string& name) const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<NamedBase> List() const ABSL_LOCKS_EXCLUDED(mutex_);  // by name, bytewise

  // For adapters that name one. Outlived by this.
  HostedBaseFinder Finder() const;

  // Runs `change` on a worker, after all changes of that base which were queued before.
  // BASE_MODEL_NOT_FOUND: then it does not run.
  using Job = absl::AnyInvocable<void(const NamedBase& base, const MergeTools& tools)>;
  absl::Status Change(const std::string& name, Job change) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Entry {
    BaseLoadRequest request;
    std::shared_ptr<HostedBase> base;  // null while it is loaded
    std::shared_ptr<Strand> changes;
  };

  absl::StatusOr<NamedBase> LoadAgain(const BaseLoadRequest& request, const Entry& entry) const;
  absl::StatusOr<Entry> FindEntry(const std::string& name) const ABSL_LOCKS_EXCLUDED(mutex_);

  const std::shared_ptr<const SourceRoots> models_;
  const std::shared_ptr<MemoryBudget> budget_;  // synchronises itself
  ThreadPool& io_pool_;
  ThreadPool& workers_;
  const MergeTools tools_;

  mutable absl::Mutex mutex_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_HOSTED_BASES_H_
