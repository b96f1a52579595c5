// The adapters of this process, by name.
#ifndef ADAPTERD_CORE_REGISTRY_ADAPTER_REGISTRY_H_
#define ADAPTERD_CORE_REGISTRY_ADAPTER_REGISTRY_H_

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/base/thread_pool.h"
#include "core/base/token_bucket.h"
#include "core/registry/adapter_handle.h"
#include "core/registry/event_log.h"
#include "core/registry/journal.h"
#include "core/registry/registry_types.h"
#include "core/registry/tenant_quotas.h"
#include "core/registry/thrash_guard.h"

namespace adapterd {

struct LoadedState;

// How a load ended, for metrics and logs. Callers that joined it are not counted again.
struct LoadEvent {
  std::string name;
  absl::Status status;
  bool read = false;      // weights were read and published; false for a no-op
  bool restored = false;  // an evicted adapter came back
  absl::Duration duration;
};

struct RegistryOptions {
  std::string public_id_template = "{base}:{name}";
  size_t keep_revisions = 0;   // replaced ones of each adapter
  TenantQuotas tenant_quotas;  // for what is loaded or labelled from now on
  Journal* journal = nullptr;  // null: nothing survives; else outlives the registry
  // On an I/O thread, or on the thread that needed room; never under the lock. May be empty.
  std::function<void(const LoadEvent&)> on_load = nullptr;
  std::function<void(const std::string& name)> on_evict = nullptr;
  std::function<void()> on_thrash = nullptr;  // when it begins to thrash (ThrashGuard)
};

// Loads and restores run on `io_pool`: what is decided is decided under one lock, and everything
// slow (reading, packing, journal, freeing) happens outside it. Changes of one name never overlap;
// equal loads share one. An adapter's state is replaced as a whole (registry_state.h), after the
// journal has it. Budget and handles: LoadedAdapter, AdapterLease.
//
// Threads: every method from any thread. Callbacks run on the calling thread or one of the
// registry's, never under the lock; they run exactly once and should be quick. Lifetime: outlives
// its tickets; the destructor cancels running loads and waits for them.
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

  // What the journal holds; these adapters are EVICTED until they are used. Before anything else.
  void Restore(std::vector<AdapterRecord> records) ABSL_LOCKS_EXCLUDED(mutex_);

  // From a source to serving. On a name in use: equal content and options is a no-op, decided
  // before anything is reserved; anything else needs `replace`, an atomic swap. On any error
  // nothing changes. Errors: those of the reader and the journal, ADAPTER_EXISTS, DIGEST_MISMATCH,
  // MEMORY_BUDGET_EXCEEDED, CANCELLED.
  TicketPtr Load(LoadRequest request, Done<LoadResult> done) ABSL_LOCKS_EXCLUDED(mutex_);

  // Removes the name, then answers when the last user has let go and the memory is free (or at
  // once, when the request does not wait). Waits first for a running change of the name.
  // ADAPTER_NOT_FOUND, REVISION_MISMATCH, ADAPTER_PINNED.
  TicketPtr Unload(UnloadRequest request, Done<UnloadResult> done) ABSL_LOCKS_EXCLUDED(mutex_);

  // ADAPTER_NOT_FOUND, ETAG_MISMATCH.
  TicketPtr Update(UpdateRequest request, Done<AdapterSnapshot> done) ABSL_LOCKS_EXCLUDED(mutex_);

  // Makes a kept revision the current one; reads it first when it is evicted. ADAPTER_NOT_FOUND,
  // REVISION_MISMATCH, ADAPTER_FAILED, MEMORY_BUDGET_EXCEEDED.
  TicketPtr Rollback(std::string name, std::string revision, Done<AdapterSnapshot> done)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Points `alias` at a current or kept revision; an empty `revision` removes it (OK when there is
  // none). ADAPTER_NOT_FOUND, REVISION_MISMATCH, INVALID_FIELD above kMaxAliases.
  TicketPtr SetAlias(std::string name, std::string alias, std::string revision,
                     Done<AdapterSnapshot> done) ABSL_LOCKS_EXCLUDED(mutex_);

  // Before a request acquires these: QUOTA_EXCEEDED when a tenant of theirs had as many calls as it
  // may have in this second, and then none is charged. Takes no lock without quotas.
  absl::Status ChargeTenants(const std::vector<AdapterRef>& refs,
                             TokenBucket::Clock::time_point now = TokenBucket::Clock::now())
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Handles for all refs in order, or none; empty ones for disabled adapters if they are to be
  // skipped. Waits for names that are LOADING, and brings back what is EVICTED. ADAPTER_NOT_FOUND,
  // REVISION_MISMATCH, ADAPTER_FAILED, ADAPTER_DISABLED, MEMORY_BUDGET_EXCEEDED (what they need
  // together can never fit).
  TicketPtr Acquire(std::vector<AdapterRef> refs, bool skip_disabled,
                    Done<std::vector<AdapterHandle>> done) ABSL_LOCKS_EXCLUDED(mutex_);

  // The same when that needs no waiting: nullopt otherwise. Costs a short lock and no allocation
  // but for the handles.
  std::optional<absl::StatusOr<std::vector<AdapterHandle>>> AcquireNow(
      const std::vector<AdapterRef>& refs, bool skip_disabled) ABSL_LOCKS_EXCLUDED(mutex_);

  // Gives up waiting: the callback runs with CANCELLED unless it ran already, and a load that
  // nobody waits for any more is dropped. No effect on a change that has begun.
  void Cancel(const TicketPtr& ticket) ABSL_LOCKS_EXCLUDED(mutex_);

  // Everything that Load checks, on the calling thread; changes nothing.
  ValidationResult Validate(const LoadRequest& request, const Cancellation& cancellation) const;

  // What a load of this manifest reserves. SHAPE_MISMATCH when the size overflows.
  absl::StatusOr<int64_t> BytesFor(const AdapterManifest& manifest) const {
    return LoadedAdapter::BytesFor(kernels_, manifest);
  }

  // For content that has yet to be made: MEMORY_BUDGET_EXCEEDED when loading it would end so now,
  // whoever is evicted. OK for a name in use without `replace`, of which no load takes memory.
  absl::Status CheckRoomFor(const LoadRequest& request, const AdapterManifest& manifest) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  absl::StatusOr<AdapterSnapshot> Get(const std::string& name) const ABSL_LOCKS_EXCLUDED(mutex_);

  // The manifest of a current revision that may be EVICTED: read from its source, on the calling
  // thread, without weights unless only those can tell that it is the same still. Changes nothing.
  // ADAPTER_NOT_FOUND, REVISION_MISMATCH, ADAPTER_FAILED, BASE_REQUIRED, SOURCE_UNAVAILABLE,
  // CANCELLED.
  absl::StatusOr<std::shared_ptr<const AdapterManifest>> ReadManifest(
      const std::string& name, const std::string& revision, const Cancellation& cancellation) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Takes the lock for a few hundred adapters at a time: what changes meanwhile is on the page or
  // has an event after its sequence.
  ListPage List(const ListQuery& query) const ABSL_LOCKS_EXCLUDED(mutex_);
  RegistryTotals totals() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Keys of all stored content that some revision is read from.
  std::set<std::string> StoredKeys() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Evicts down to it as far as possible; what is in use stays until more memory is needed.
  void SetMemoryBudget(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Evicts what was unused longest, until so many bytes are free or there is nothing to evict.
  void EvictUnused(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  const MemoryBudget& budget() const { return *budget_; }

  EventLog& events() { return events_; }

 private:
  struct Record;
  struct Content;
  struct State;
  struct Entry;
  struct Job;
  struct Restoration;
  struct Acquisition;
  using RecordPtr = std::shared_ptr<Record>;
  using JobPtr = std::shared_ptr<Job>;
  using AcquisitionPtr = std::shared_ptr<Acquisition>;
  using Outcome = absl::StatusOr<LoadResult>;
  using Waiter = absl::AnyInvocable<void(const Outcome&)>;
  using WaitingList = std::list<std::pair<TicketPtr, Waiter>>;
  // Let go outside the lock: the last of its kind frees memory.
  using Leases = std::vector<LeasePtr>;

  // Snapshots (adapter_registry.cc).
  AdapterSnapshot SnapshotOf(const Entry& entry) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void AddEvent(AdapterEventType type, const Entry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static bool Matches(const Entry& entry, const ListQuery& query);
  static AdapterState StateOf(const Entry& entry);

  // What tenants have (tenant_quotas.cc). QUOTA_EXCEEDED when an adapter of that name with these
  // labels and bytes would be too much. Costs a pass over all names, if its tenant has a quota.
  static int64_t BytesOf(const State& state);
  int64_t BytesKeptBeside(const State& state) const;  // a revision that replaces the current one
  absl::Status CheckQuota(const std::string& name, const Labels& labels, int64_t bytes) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  static std::map<std::string, TokenBucket, std::less<>> TenantCalls(const TenantQuotas& quotas);
  // The same for a load, whose bytes count from then on.
  absl::Status ClaimQuota(Job& job, std::optional<int64_t> new_bytes)  // none: options change alone
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Which content is in memory (residency.cc).
  void Attach(Record& record, std::shared_ptr<const LoadedAdapter> loaded,
              std::shared_ptr<const AdapterManifest> manifest)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  LeasePtr Detach(Record& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Touch(Record& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static bool Keeps(const Content& content);
  std::vector<Content*> PlanEviction(int64_t missing, const Entry* spare) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  bool Evict(int64_t missing, const Entry* spare, std::vector<std::string>* names)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Reservation> ReserveFor(int64_t bytes, const Entry* spare,
                                         std::vector<std::string>* evicted)
      ABSL_LOCKS_EXCLUDED(mutex_);
  static bool IsSuperseded(const Record& record);
  // MEMORY_BUDGET_EXCEEDED when `wanted` cannot be in memory at once, whatever goes.
  absl::Status CheckRoom(const std::set<RecordPtr>& wanted) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  // Changes of one name, one after the other (changes.cc).
  // What the adapter becomes; nullopt: it is that already.
  using Change = absl::AnyInvocable<absl::StatusOr<std::optional<State>>(const Entry&)>;
  void Wait(const JobPtr& job, WaitingList& list, const TicketPtr& ticket, Waiter waiter)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TryChange(std::string name, Change change, AdapterEventType event,
                 Done<AdapterSnapshot> done, const TicketPtr& ticket) ABSL_LOCKS_EXCLUDED(mutex_);
  void RunChange(const JobPtr& job, const std::string& name, Change change, AdapterEventType event,
                 Done<AdapterSnapshot> done) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status WriteDown(const std::string& name, AdapterOwner owner, const State& state)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Apply(Entry& entry, State next, AdapterEventType event, Leases& dropped)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Retire(Entry& entry, Record& record, Leases& dropped) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string NextEtag() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropUnkept(State& state) const;
  void TryUnload(UnloadRequest request, Done<UnloadResult> done, const TicketPtr& ticket)
      ABSL_LOCKS_EXCLUDED(mutex_);
  static absl::Status CheckUnload(const Entry& entry, const UnloadRequest& request);
  void Remove(const std::string& name, Leases& leases,
              std::vector<std::shared_ptr<Restoration>>& reading)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunUnload(const JobPtr& job, const UnloadRequest& request, Done<UnloadResult> done)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void EndJob(const JobPtr& job, const std::string& name, const Outcome& outcome)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // The life of one load, on an I/O thread (load_job.cc).
  struct Loaded;
  void TryLoad(LoadRequest request, Done<LoadResult> done, const TicketPtr& ticket)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Run(const JobPtr& job) ABSL_LOCKS_EXCLUDED(mutex_);
  Outcome GuardedExecute(Job& job, LoadEvent& event) ABSL_LOCKS_EXCLUDED(mutex_);
  Outcome Execute(Job& job, LoadEvent& event) ABSL_LOCKS_EXCLUDED(mutex_);
  LoadedState CurrentOf(const std::string& name) const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<ContentDigest> DigestOf(const LoadedState& current,
                                         const Cancellation& cancellation,
                                         AdapterReader& reader) const;
  Outcome Described(const Job& job, LoadResult result) const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Loaded> ReadAndPack(Job& job, AdapterReader& reader, ProblemList& problems,
                                     std::vector<std::string>& evicted) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status ClaimPublicId(Job& job, const AdapterManifest& manifest) ABSL_LOCKS_EXCLUDED(mutex_);
  // ADAPTER_EXISTS when `id` belongs to another name.
  absl::Status CheckPublicId(const std::string& id, const std::string& name) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Unless it is another name's.
  void ReleasePublicId(const std::string& id, const std::string& name)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  RecordPtr NewRecord(const Job& job, const AdapterReader& reader, const Loaded& loaded,
                      std::vector<std::string> warnings, absl::Time opened_at);
  // `loaded` is null when only options change; `record` then too.
  absl::Status Publish(Job& job, const RecordPtr& record, const Loaded* loaded, LoadResult& result)
      ABSL_LOCKS_EXCLUDED(mutex_);
  State NextState(const Entry& entry, const Job& job, const RecordPtr& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WakeUsers(Job& job) ABSL_LOCKS_EXCLUDED(mutex_);
  void AddFileDigest(const Job& job, AdapterReader& reader) ABSL_LOCKS_EXCLUDED(mutex_);
  void KeepFailure(const Job& job, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

  // Without loading (validate.cc).
  bool Fits(const std::string& name, int64_t bytes, std::vector<std::string>& would_evict) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  bool ValidateName(const LoadRequest& request, const ContentDigest& digest, AdapterReader& reader,
                    ProblemList& problems) const ABSL_LOCKS_EXCLUDED(mutex_);

  // Handles (acquire.cc).
  struct Use;
  enum class Disabled { kRefuse, kSkip, kTake };
  void TryAcquire(const AcquisitionPtr& acquisition) ABSL_LOCKS_EXCLUDED(mutex_);
  void Resolve(const AcquisitionPtr& acquisition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Use> FindUse(const AdapterRef& ref, Disabled disabled, JobPtr& first_load) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  static absl::StatusOr<RecordPtr> FindRevision(const AdapterRef& ref, const Entry& entry);
  // Incomplete when there is a `first_load` to wait for.
  absl::StatusOr<std::vector<Use>> FindUses(const std::vector<AdapterRef>& refs, Disabled disabled,
                                            JobPtr& first_load) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  static bool AreAllHere(const std::vector<Use>& uses);
  std::vector<AdapterHandle> Grant(const std::vector<Use>& uses)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool StandInLine(const AcquisitionPtr& acquisition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LeaveLine(Acquisition& acquisition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void BringBack(const AcquisitionPtr& acquisition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropUnwanted(Acquisition& acquisition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StopWaiting(const AcquisitionPtr& acquisition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Answer(const AcquisitionPtr& acquisition) ABSL_LOCKS_EXCLUDED(mutex_);

  // Evicted content that comes back (restore_job.cc).
  void StartRestoration(const RecordPtr& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunRestoration(const RecordPtr& record) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Loaded> ReadAgain(const RevisionRecord& expected, const Cancellation& cancellation,
                                   int64_t& lacking) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Loaded> Share(const RevisionRecord& expected, const RevisionRecord& other,
                               const LeasePtr& lease, const Cancellation& cancellation) const;
  bool Park(const RecordPtr& record, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void Unpark() ABSL_LOCKS_EXCLUDED(mutex_);
  void SubmitParked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishRestoration(const RecordPtr& record, absl::StatusOr<Loaded> loaded)
      ABSL_LOCKS_EXCLUDED(mutex_);

  const RegistryOptions options_;
  const Kernels& kernels_;
  const AdapterOpener opener_;
  const std::shared_ptr<MemoryBudget> budget_;  // synchronises itself
  ThreadPool& io_pool_;
  const std::shared_ptr<ReleaseSignal> signal_;  // synchronises itself
  EventLog events_;                              // synchronises itself

  mutable absl::Mutex mutex_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, TokenBucket, std::less<>> tenant_calls_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, std::string> public_ids_ ABSL_GUARDED_BY(mutex_);  // id -> name
  // By revision and derived digest; and the same by last use, the longest unused first.
  absl::flat_hash_map<std::string, std::unique_ptr<Content>> contents_ ABSL_GUARDED_BY(mutex_);
  std::list<Content*> by_use_ ABSL_GUARDED_BY(mutex_);
  std::list<AcquisitionPtr> line_ ABSL_GUARDED_BY(mutex_);  // see Acquisition
  std::vector<RecordPtr> parked_ ABSL_GUARDED_BY(mutex_);   // restorations that wait for memory
  mutable ThrashGuard thrash_guard_ ABSL_GUARDED_BY(mutex_);
  bool is_thrashing_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t etag_counter_ ABSL_GUARDED_BY(mutex_);   // begins at random: etags of two runs differ
  int64_t resident_ ABSL_GUARDED_BY(mutex_) = 0;    // adapters whose current revision is in memory
  int64_t parameters_ ABSL_GUARDED_BY(mutex_) = 0;  // of all current revisions
  int running_ ABSL_GUARDED_BY(mutex_) = 0;         // jobs and restorations
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;   // what still waits is answered CANCELLED

  ThreadPool changes_;  // last: its jobs use all of the above; short, but for the journal's disk
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_ADAPTER_REGISTRY_H_
