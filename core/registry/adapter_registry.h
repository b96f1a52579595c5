// The adapters of this process, by name.
#ifndef ADAPTERD_CORE_REGISTRY_ADAPTER_REGISTRY_H_
#define ADAPTERD_CORE_REGISTRY_ADAPTER_REGISTRY_H_

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/base/thread_pool.h"
#include "core/registry/registry_types.h"

namespace adapterd {

// How a load ended, for metrics and logs. Callers that joined it are not counted again.
struct LoadEvent {
  std::string name;
  absl::Status status;
  bool read = false;  // weights were read and published; false for a no-op
  absl::Duration duration;
};

struct RegistryOptions {
  std::string public_id_template = "{base}:{name}";
  std::function<void(const LoadEvent&)> on_load;  // on an I/O thread; may be empty
};

// Loads run on `io_pool`: what is decided is decided under one lock, and everything slow (reading,
// checking, packing, freeing) happens outside it. Loads of one name never overlap; equal requests
// share one. Budget and handles: LoadedAdapter.
//
// Threads: every method from any thread. Callbacks run on the calling thread or an I/O thread,
// never under the lock; they run exactly once and should be quick. Lifetime: outlives its tickets;
// the destructor cancels running loads and waits for them.
class AdapterRegistry {
 public:
  class Ticket;
  using TicketPtr = std::shared_ptr<Ticket>;
  template <typename T>
  using Done = absl::AnyInvocable<void(absl::StatusOr<T>)>;

  // `kernels` and `io_pool` must outlive the registry.
  AdapterRegistry(RegistryOptions options, const Kernels& kernels, AdapterOpener opener,
                  std::shared_ptr<MemoryBudget> budget, ThreadPool& io_pool);
  ~AdapterRegistry();
  AdapterRegistry(const AdapterRegistry&) = delete;
  AdapterRegistry& operator=(const AdapterRegistry&) = delete;

  // From a source to serving. On a name in use: equal content and options is a no-op, decided
  // before anything is reserved; anything else needs `replace`, an atomic swap. On any error
  // nothing changes. Errors: those of the reader, ADAPTER_EXISTS, DIGEST_MISMATCH,
  // MEMORY_BUDGET_EXCEEDED, CANCELLED.
  TicketPtr Load(LoadRequest request, Done<LoadResult> done) ABSL_LOCKS_EXCLUDED(mutex_);

  // Removes the name at once, then answers when the last user has let go and the memory is free
  // (or at once, when the request does not wait). Waits first for a running load of the name.
  // ADAPTER_NOT_FOUND, REVISION_MISMATCH, ADAPTER_PINNED.
  TicketPtr Unload(UnloadRequest request, Done<UnloadResult> done) ABSL_LOCKS_EXCLUDED(mutex_);

  // Handles for all refs in order, or none. Waits for names that are LOADING (holding nothing).
  // ADAPTER_NOT_FOUND, REVISION_MISMATCH.
  TicketPtr Acquire(std::vector<AdapterRef> refs, Done<std::vector<AdapterHandle>> done)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Gives up waiting for a running load: the callback runs with CANCELLED unless it ran already,
  // and a load that nobody waits for any more is dropped. No effect on an Unload whose name is
  // gone.
  void Cancel(const TicketPtr& ticket) ABSL_LOCKS_EXCLUDED(mutex_);

  // Everything that Load checks, on the calling thread; changes nothing.
  ValidationResult Validate(const LoadRequest& request, const Cancellation& cancellation) const;

  absl::StatusOr<AdapterSnapshot> Get(const std::string& name) const ABSL_LOCKS_EXCLUDED(mutex_);

  // By name, bytewise. Cheap copies; costs a moment of the lock for each thousand adapters.
  std::vector<AdapterSnapshot> List() const ABSL_LOCKS_EXCLUDED(mutex_);

  const MemoryBudget& budget() const { return *budget_; }

 private:
  struct Job;
  struct Draining;
  struct Entry;
  using JobPtr = std::shared_ptr<Job>;
  using Outcome = absl::StatusOr<LoadResult>;
  using Waiter = absl::AnyInvocable<void(const Outcome&)>;
  using WaitingList = std::list<std::pair<TicketPtr, Waiter>>;

  // One attempt each; a waiter on a running load makes the next.
  void TryLoad(LoadRequest request, Done<LoadResult> done, const TicketPtr& ticket)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void TryUnload(UnloadRequest request, Done<UnloadResult> done, const TicketPtr& ticket)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void TryAcquire(std::vector<AdapterRef> refs, Done<std::vector<AdapterHandle>> done,
                  const TicketPtr& ticket) ABSL_LOCKS_EXCLUDED(mutex_);

  // `list` is one of the job's.
  void Wait(const JobPtr& job, WaitingList& list, const TicketPtr& ticket, Waiter waiter)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Entry> Remove(const UnloadRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  JobPtr FirstLoadOf(const std::vector<AdapterRef>& refs) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::vector<AdapterHandle>> TakeHandles(const std::vector<AdapterRef>& refs) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  AdapterSnapshot SnapshotOf(const Entry& entry) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  // The life of one load, on an I/O thread (load_job.cc).
  void Run(const JobPtr& job) ABSL_LOCKS_EXCLUDED(mutex_);
  Outcome Execute(Job& job, LoadEvent& event) ABSL_LOCKS_EXCLUDED(mutex_);
  Outcome GuardedExecute(Job& job, LoadEvent& event) ABSL_LOCKS_EXCLUDED(mutex_);
  // What serves under a name now.
  struct Current {
    std::shared_ptr<const LoadedAdapter> loaded;
    LoadRequest request;
    SourceIdentity identity;
    absl::Time opened_at;
    std::string weights_sha256;
  };
  // What a load makes of its name. Without `loaded` only the options change.
  struct Published {
    std::shared_ptr<const LoadedAdapter> loaded;
    SourceIdentity identity;
    absl::Time opened_at;
    std::string weights_sha256;  // empty: not known yet
    std::vector<std::string> warnings;
    std::string replaced_revision;
  };
  std::optional<Current> CurrentOf(const std::string& name) const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<ContentDigest> DigestOf(const Current& current, const Job& job,
                                         AdapterReader& reader) const;
  static bool SameBase(const Current& current, const LoadRequest& request,
                       const AdapterReader& reader);
  Outcome AlreadyLoaded(const Job& job) const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::shared_ptr<const LoadedAdapter>> ReadAndPack(const Job& job,
                                                                   AdapterReader& reader,
                                                                   ProblemList& problems,
                                                                   Published& published)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status ClaimPublicId(Job& job, const AdapterManifest& manifest) ABSL_LOCKS_EXCLUDED(mutex_);
  // ADAPTER_EXISTS when `id` belongs to another name.
  absl::Status CheckPublicId(const std::string& id, const std::string& name) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::Status Publish(Job& job, Published& published) ABSL_LOCKS_EXCLUDED(mutex_);
  void WakeUsers(Job& job) ABSL_LOCKS_EXCLUDED(mutex_);
  Outcome Described(const Job& job, AdapterReader& reader, const Published& published)
      ABSL_LOCKS_EXCLUDED(mutex_);
  bool ValidateName(const LoadRequest& request, const ContentDigest& digest, AdapterReader& reader,
                    ProblemList& problems) const ABSL_LOCKS_EXCLUDED(mutex_);
  void Finish(const JobPtr& job, const Outcome& outcome) ABSL_LOCKS_EXCLUDED(mutex_);

  const RegistryOptions options_;
  const Kernels& kernels_;
  const AdapterOpener opener_;
  const std::shared_ptr<MemoryBudget> budget_;  // synchronises itself
  ThreadPool& io_pool_;

  mutable absl::Mutex mutex_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, std::string> public_ids_ ABSL_GUARDED_BY(mutex_);  // id -> name
  int64_t etag_counter_ ABSL_GUARDED_BY(mutex_) = 0;
  int running_jobs_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;  // what still waits is answered CANCELLED
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_ADAPTER_REGISTRY_H_
