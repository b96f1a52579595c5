#include "core/registry/adapter_registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>

#include "core/base/status_macros.h"
#include "core/registry/registry_state.h"

namespace adapterd {
namespace {

absl::Status NotFound(const std::string& name) {
  return Error(Reason::kAdapterNotFound, fmt::format("adapter \"{}\" is not loaded", name))
      .With("adapter", name);
}

absl::Status RevisionMismatch(const std::string& name, const std::string& expected,
                              const std::string& actual) {
  return Error(Reason::kRevisionMismatch,
               fmt::format("adapter \"{}\" is at revision {}, not {}", name, actual, expected))
      .With("adapter", name)
      .With("expected", expected)
      .With("actual", actual);
}

absl::Status GaveUp() { return absl::CancelledError("the caller gave up waiting"); }

// Answers an unload when the last of its revisions is free.
class FreeCounter {
 public:
  FreeCounter(int pending, AdapterRegistry::Done<UnloadResult> done)
      : pending_(pending), done_(std::move(done)) {}

  void Freed(int64_t bytes) {
    bytes_.fetch_add(bytes);
    if (pending_.fetch_sub(1) == 1 && done_) done_(Result());
  }
  UnloadResult Result() const { return {bytes_.load(), pending_.load() == 0}; }

 private:
  std::atomic<int> pending_;
  std::atomic<int64_t> bytes_{0};
  AdapterRegistry::Done<UnloadResult> done_;  // empty when nobody waits
};

}  // namespace

AdapterHandle::AdapterHandle(std::shared_ptr<const LoadedAdapter> adapter,
                             std::shared_ptr<AdapterUsage> usage)
    : adapter_(std::move(adapter)), usage_(std::move(usage)) {
  usage_->use_count.fetch_add(1, std::memory_order_relaxed);
  usage_->in_flight.fetch_add(1, std::memory_order_relaxed);
  usage_->last_use_unix_ns.store(absl::ToUnixNanos(absl::Now()), std::memory_order_relaxed);
}

AdapterHandle& AdapterHandle::operator=(AdapterHandle&& other) noexcept {
  AdapterHandle taken(std::move(other));
  adapter_.swap(taken.adapter_);
  usage_.swap(taken.usage_);
  return *this;
}

AdapterHandle::~AdapterHandle() {
  if (usage_ != nullptr) usage_->in_flight.fetch_sub(1, std::memory_order_relaxed);
}

AdapterRegistry::AdapterRegistry(RegistryOptions options, const Kernels& kernels,
                                 AdapterOpener opener, std::shared_ptr<MemoryBudget> budget,
                                 ThreadPool& io_pool)
    : options_(std::move(options)),
      kernels_(kernels),
      opener_(std::move(opener)),
      budget_(std::move(budget)),
      io_pool_(io_pool) {}

AdapterRegistry::~AdapterRegistry() {
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  for (auto& [name, entry] : entries_) {
    if (entry.job != nullptr) entry.job->cancellation.Cancel();
  }
  mutex_.Await(absl::Condition(
      +[](int* running) { return *running == 0; }, &running_jobs_));
}

AdapterRegistry::TicketPtr AdapterRegistry::Load(LoadRequest request, Done<LoadResult> done) {
  auto ticket = std::make_shared<Ticket>();
  TryLoad(std::move(request), std::move(done), ticket);
  return ticket;
}

AdapterRegistry::TicketPtr AdapterRegistry::Unload(UnloadRequest request, Done<UnloadResult> done) {
  auto ticket = std::make_shared<Ticket>();
  TryUnload(std::move(request), std::move(done), ticket);
  return ticket;
}

AdapterRegistry::TicketPtr AdapterRegistry::Acquire(std::vector<AdapterRef> refs,
                                                    Done<std::vector<AdapterHandle>> done) {
  auto ticket = std::make_shared<Ticket>();
  TryAcquire(std::move(refs), std::move(done), ticket);
  return ticket;
}

void AdapterRegistry::Cancel(const TicketPtr& ticket) {
  Waiter waiter;
  {
    absl::MutexLock lock(&mutex_);
    ticket->cancelled = true;
    if (ticket->job == nullptr) return;
    Job& job = *ticket->job;
    for (WaitingList* list : {&job.waiters, &job.ready_waiters}) {
      const auto it = std::find_if(list->begin(), list->end(),
                                   [&](const auto& waiting) { return waiting.first == ticket; });
      if (it == list->end()) continue;
      waiter = std::move(it->second);
      list->erase(it);
    }
    if (job.waiters.empty() && job.ready_waiters.empty()) job.cancellation.Cancel();
    ticket->job = nullptr;
  }
  if (waiter) waiter(GaveUp());
}

void AdapterRegistry::Wait(const JobPtr& job, WaitingList& list, const TicketPtr& ticket,
                           Waiter waiter) {
  ticket->job = job;
  list.emplace_back(ticket, std::move(waiter));
}

void AdapterRegistry::TryLoad(LoadRequest request, Done<LoadResult> done, const TicketPtr& ticket) {
  bool cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    cancelled = ticket->cancelled || stopping_;
    if (!cancelled) {
      Entry& entry = entries_[request.name];
      if (entry.job == nullptr) {
        if (entry.current == nullptr) entry.request = request;
        entry.job = std::make_shared<Job>(request);
        ++running_jobs_;
        io_pool_.Submit([this, job = entry.job] { Run(job); });
      }
      // A dropped load may still be running; its outcome is nobody's.
      if (entry.job->request == request && !entry.job->cancellation.IsCancelled()) {
        Wait(entry.job, entry.job->waiters, ticket,
             [done = std::move(done)](const Outcome& outcome) mutable { done(outcome); });
      } else {
        Wait(entry.job, entry.job->waiters, ticket,
             [this, request, done = std::move(done), ticket](const Outcome&) mutable {
               TryLoad(std::move(request), std::move(done), ticket);
             });
      }
    }
  }
  if (cancelled) done(GaveUp());  // NOLINT(bugprone-use-after-move): moved only when not
}

absl::StatusOr<AdapterRegistry::Entry> AdapterRegistry::Remove(const UnloadRequest& request) {
  auto it = entries_.find(request.name);
  if (it == entries_.end()) return NotFound(request.name);
  Entry& entry = it->second;
  const std::string& revision = entry.current->revision();
  if (!request.revision.empty() && request.revision != revision) {
    return RevisionMismatch(request.name, request.revision, revision);
  }
  if (entry.request.pinned && !request.force) {
    return Error(Reason::kAdapterPinned,
                 fmt::format("adapter \"{}\" is pinned; unload it with force", request.name))
        .With("adapter", request.name);
  }
  Entry removed = std::move(entry);
  public_ids_.erase(removed.public_id);
  entries_.erase(it);
  return removed;
}

void AdapterRegistry::TryUnload(UnloadRequest request, Done<UnloadResult> done,
                                const TicketPtr& ticket) {
  absl::StatusOr<Entry> removed = GaveUp();
  {
    absl::MutexLock lock(&mutex_);
    if (!ticket->cancelled && !stopping_) {
      auto it = entries_.find(request.name);
      if (it != entries_.end() && it->second.job != nullptr) {
        Wait(it->second.job, it->second.job->waiters, ticket,
             [this, request, done = std::move(done), ticket](const Outcome&) mutable {
               TryUnload(std::move(request), std::move(done), ticket);
             });
        return;
      }
      removed = Remove(request);
    }
  }
  if (!removed.ok()) return done(removed.status());
  std::vector<std::shared_ptr<const LoadedAdapter>> revisions = {std::move(removed->current)};
  for (const Draining& draining : removed->draining) {
    if (auto revision = draining.loaded.lock()) revisions.push_back(std::move(revision));
  }
  auto counter = std::make_shared<FreeCounter>(
      revisions.size(), request.wait ? std::move(done) : Done<UnloadResult>());
  for (const auto& revision : revisions) {
    revision->OnFreed([counter](int64_t bytes) { counter->Freed(bytes); });
  }
  revisions.clear();  // frees, unless requests still hold them
  // NOLINTNEXTLINE(bugprone-use-after-move): moved only when somebody waits
  if (!request.wait) done(counter->Result());
}

AdapterRegistry::JobPtr AdapterRegistry::FirstLoadOf(const std::vector<AdapterRef>& refs) const {
  for (const AdapterRef& ref : refs) {
    auto it = entries_.find(ref.name);
    if (it != entries_.end() && it->second.current == nullptr) return it->second.job;
  }
  return nullptr;
}

absl::StatusOr<std::vector<AdapterHandle>> AdapterRegistry::TakeHandles(
    const std::vector<AdapterRef>& refs) const {
  std::vector<AdapterHandle> handles;
  handles.reserve(refs.size());
  for (const AdapterRef& ref : refs) {
    auto it = entries_.find(ref.name);
    if (it == entries_.end()) return NotFound(ref.name);
    const Entry& entry = it->second;
    const std::string& revision = entry.current->revision();
    if (!ref.revision.empty() && ref.revision != revision) {
      return RevisionMismatch(ref.name, ref.revision, revision);
    }
    handles.emplace_back(entry.current, entry.usage);
  }
  return handles;
}

void AdapterRegistry::TryAcquire(std::vector<AdapterRef> refs,
                                 Done<std::vector<AdapterHandle>> done, const TicketPtr& ticket) {
  absl::StatusOr<std::vector<AdapterHandle>> handles = GaveUp();
  {
    absl::MutexLock lock(&mutex_);
    if (!ticket->cancelled && !stopping_) {
      if (JobPtr job = FirstLoadOf(refs)) {
        Wait(job, job->ready_waiters, ticket,
             [this, refs = std::move(refs), done = std::move(done), ticket](
                 const Outcome&) mutable { TryAcquire(std::move(refs), std::move(done), ticket); });
        return;
      }
      handles = TakeHandles(refs);
    }
  }
  done(std::move(handles));
}

absl::StatusOr<AdapterSnapshot> AdapterRegistry::Get(const std::string& name) const {
  absl::MutexLock lock(&mutex_);
  auto it = entries_.find(name);
  if (it == entries_.end()) return NotFound(name);
  return SnapshotOf(it->second);
}

std::vector<AdapterSnapshot> AdapterRegistry::List() const {
  std::vector<AdapterSnapshot> snapshots;
  absl::MutexLock lock(&mutex_);
  snapshots.reserve(entries_.size());
  for (const auto& [name, entry] : entries_) snapshots.push_back(SnapshotOf(entry));
  return snapshots;
}

AdapterSnapshot AdapterRegistry::SnapshotOf(const Entry& entry) const {
  AdapterSnapshot snapshot;
  snapshot.name = entry.request.name;
  snapshot.public_id = entry.public_id;
  snapshot.source = entry.request.source.source;
  snapshot.pinned = entry.request.pinned;
  snapshot.labels = entry.request.labels;
  snapshot.etag = entry.etag;
  snapshot.use_count = entry.usage->use_count.load(std::memory_order_relaxed);
  snapshot.in_flight = entry.usage->in_flight.load(std::memory_order_relaxed);
  if (const int64_t ns = entry.usage->last_use_unix_ns.load(std::memory_order_relaxed); ns != 0) {
    snapshot.last_use_time = absl::FromUnixNanos(ns);
  }
  if (entry.current == nullptr) return snapshot;
  snapshot.state = AdapterState::kReady;
  snapshot.manifest = entry.current->shared_manifest();
  snapshot.digest = {entry.current->revision(), entry.weights_sha256};
  snapshot.warnings = entry.warnings;
  snapshot.memory_bytes = entry.current->memory_bytes();
  snapshot.load_time = entry.load_time;
  snapshot.load_duration = entry.load_duration;
  for (const Draining& draining : entry.draining) {
    if (!draining.loaded.expired()) snapshot.draining_revisions.push_back(draining.revision);
  }
  return snapshot;
}

}  // namespace adapterd
