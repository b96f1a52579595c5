// Changes of one name: one after the other, written down before they are seen.
#include <algorithm>
#include <atomic>

#include "core/base/status_macros.h"
#include "core/registry/adapter_registry.h"
#include "core/registry/load_checks.h"
#include "core/registry/registry_state.h"

namespace adapterd {
namespace {

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

void AdapterRegistry::Wait(const JobPtr& job, WaitingList& list, const TicketPtr& ticket,
                           Waiter waiter) {
  ticket->job = job;
  list.emplace_back(ticket, std::move(waiter));
}

std::string AdapterRegistry::NextEtag() { return fmt::format("{:016x}", ++etag_counter_); }

absl::Status AdapterRegistry::WriteDown(const std::string& name, AdapterOwner owner,
                                        const State& state) {
  if (options_.journal == nullptr || owner != AdapterOwner::kClients) return absl::OkStatus();
  // What this process alone holds would come back as something that cannot be read.
  if (!state.current->reloadable) return options_.journal->Erase(name);
  AdapterRecord record{name,          state.public_id,      state.etag,
                       state.pinned,  state.enabled,        state.labels,
                       state.aliases, *state.current->info, {}};
  for (const RecordPtr& kept : state.kept) {
    if (kept->reloadable) record.kept.push_back(*kept->info);
  }
  return options_.journal->Put(record);
}

void AdapterRegistry::Retire(Entry& entry, Record& record, Leases& dropped) {
  record.entry = nullptr;
  if (record.restoration != nullptr) {  // in vain: whoever waits for it looks anew
    record.restoration->cancellation.Cancel();
    SubmitParked();
  }
  if (record.lease == nullptr) return;
  std::erase_if(entry.draining, [](const Entry::Draining& old) { return old.lease.expired(); });
  entry.draining.push_back({record.lease, record.info->revision});
  dropped.push_back(Detach(record));
}

void AdapterRegistry::Apply(Entry& entry, State next, AdapterEventType event, Leases& dropped) {
  const auto count = [&](int sign) {
    mutex_.AssertHeld();
    if (entry.state.current == nullptr) return;
    parameters_ += sign * entry.state.current->info->description.parameter_count;
    if (entry.state.current->lease != nullptr) resident_ += sign;
  };
  count(-1);
  State former = std::exchange(entry.state, std::move(next));
  count(+1);
  if (former.public_id != entry.state.public_id) ReleasePublicId(former.public_id, entry.name);
  if (former.current != nullptr) former.kept.push_back(former.current);
  for (const RecordPtr& record : former.kept) {
    const std::vector<RecordPtr>& kept = entry.state.kept;
    const bool stays =
        record == entry.state.current || std::find(kept.begin(), kept.end(), record) != kept.end();
    if (!stays) Retire(entry, *record, dropped);
  }
  AddEvent(event, entry);
}

void AdapterRegistry::TryChange(std::string name, Change change, AdapterEventType event,
                                Done<AdapterSnapshot> done, const TicketPtr& ticket) {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(name);
    if (ticket->cancelled || stopping_) {
      status = GaveUp();
    } else if (it == entries_.end()) {
      status = NotFound(name);
    } else if (it->second.job != nullptr) {
      Wait(it->second.job, it->second.job->waiters, ticket,
           [this, name, change = std::move(change), event, done = std::move(done),
            ticket](const Outcome&) mutable {
             TryChange(std::move(name), std::move(change), event, std::move(done), ticket);
           });
      return;
    } else {
      const JobPtr job = it->second.job = std::make_shared<Job>();
      ++running_;
      changes_.Submit(
          [this, job, name, change = std::move(change), event, done = std::move(done)]() mutable {
            RunChange(job, name, std::move(change), event, std::move(done));
          });
      return;
    }
  }
  done(status);
}

void AdapterRegistry::RunChange(const JobPtr& job, const std::string& name, Change change,
                                AdapterEventType event, Done<AdapterSnapshot> done) {
  Leases dropped;
  absl::StatusOr<AdapterSnapshot> result = GaveUp();
  {
    std::optional<State> next;
    AdapterOwner owner;
    {
      absl::MutexLock lock(&mutex_);
      Entry& entry = entries_.at(name);  // stays as long as the job runs
      owner = entry.owner;
      if (entry.state.current == nullptr) {
        result = CannotServe(name, entry.failure);
      } else if (absl::StatusOr<std::optional<State>> changed = change(entry); !changed.ok()) {
        result = changed.status();
      } else if (next = *std::move(changed); !next.has_value()) {
        result = SnapshotOf(entry);
      } else if (absl::Status id = CheckPublicId(next->public_id, name); !id.ok()) {
        result = std::move(id);
        next.reset();
      } else {
        public_ids_.try_emplace(next->public_id, name);
        next->etag = NextEtag();
      }
    }
    if (next) {
      const absl::Status written = WriteDown(name, owner, *next);
      absl::MutexLock lock(&mutex_);
      Entry& entry = entries_.at(name);
      if (written.ok()) {
        Apply(entry, *std::move(next), event, dropped);
        result = SnapshotOf(entry);
      } else {
        if (next->public_id != entry.state.public_id) ReleasePublicId(next->public_id, name);
        result = written;
      }
    }
  }
  change = nullptr;  // a rollback's holds a handle
  dropped.clear();
  EndJob(job, name, result.ok() ? Outcome(LoadResult()) : result.status());
  done(std::move(result));
  absl::MutexLock lock(&mutex_);
  --running_;
}

void AdapterRegistry::EndJob(const JobPtr& job, const std::string& name, const Outcome& outcome) {
  WaitingList waiters;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(name);
    if (it != entries_.end() && it->second.job == job) {
      Entry& entry = it->second;
      entry.job = nullptr;
      if (!outcome.ok() && job->public_id != entry.state.public_id) {
        ReleasePublicId(job->public_id, name);
      }
      if (entry.state.current == nullptr && entry.failure.ok()) entries_.erase(it);
    }
    waiters.swap(job->waiters);
    waiters.splice(waiters.end(), job->ready_waiters);
    for (auto& [ticket, waiter] : waiters) ticket->job = nullptr;
  }
  for (auto& [ticket, waiter] : waiters) waiter(outcome);
}

AdapterRegistry::TicketPtr AdapterRegistry::Update(UpdateRequest request,
                                                   Done<AdapterSnapshot> done) {
  auto ticket = std::make_shared<Ticket>();
  const std::string name = request.name;
  Change change = [this, request = std::move(request)](
                      const Entry& entry) -> absl::StatusOr<std::optional<State>> {
    State next = entry.state;
    if (!request.etag.empty() && request.etag != next.etag) {
      return EtagMismatch(entry.name, request.etag, next.etag);
    }
    next.enabled = request.enabled.value_or(next.enabled);
    next.pinned = request.pinned.value_or(next.pinned);
    if (request.labels) {
      mutex_.AssertReaderHeld();
      RETURN_IF_ERROR(CheckQuota(entry.name, *request.labels, BytesOf(next)));
      next.labels = *request.labels;
    }
    if (next.enabled == entry.state.enabled && next.pinned == entry.state.pinned &&
        next.labels == entry.state.labels) {
      return std::nullopt;
    }
    return next;
  };
  TryChange(name, std::move(change), AdapterEventType::kUpdated, std::move(done), ticket);
  return ticket;
}

AdapterRegistry::TicketPtr AdapterRegistry::SetAlias(std::string name, std::string alias,
                                                     std::string revision,
                                                     Done<AdapterSnapshot> done) {
  auto ticket = std::make_shared<Ticket>();
  Change change = [this, alias = std::move(alias), revision = std::move(revision)](
                      const Entry& entry) -> absl::StatusOr<std::optional<State>> {
    State next = entry.state;
    if (revision.empty()) {
      if (next.aliases.erase(alias) == 0) return std::nullopt;
      DropUnkept(next);
      return next;
    }
    if (next.Find(revision) == nullptr) {
      return RevisionMismatch(entry.name, revision, next.current->info->revision);
    }
    std::string& target = next.aliases[alias];
    if (target == revision) return std::nullopt;
    target = revision;
    if (next.aliases.size() > kMaxAliases) {
      return Error(Reason::kInvalidField,
                   fmt::format("adapter \"{}\" has {} aliases already", entry.name, kMaxAliases))
          .With("field", "alias");
    }
    DropUnkept(next);
    return next;
  };
  TryChange(std::move(name), std::move(change), AdapterEventType::kUpdated, std::move(done),
            ticket);
  return ticket;
}

// A revision is kept while it is one of the newest, or an alias points at it.
void AdapterRegistry::DropUnkept(State& state) const {
  size_t place = 0;
  std::erase_if(state.kept, [&](const RecordPtr& record) {
    const bool is_new = place++ < options_.keep_revisions && record->error.ok();
    return !is_new &&
           std::none_of(state.aliases.begin(), state.aliases.end(),
                        [&](const auto& alias) { return alias.second == record->info->revision; });
  });
}

AdapterRegistry::TicketPtr AdapterRegistry::Rollback(std::string name, std::string revision,
                                                     Done<AdapterSnapshot> done) {
  auto acquisition = std::make_shared<Acquisition>();
  acquisition->refs = {{name, revision}};
  acquisition->disabled = Disabled::kTake;
  auto ticket = std::make_shared<Ticket>();
  acquisition->ticket = ticket;
  ticket->acquisition = acquisition;
  // In memory first, and held there until it is current.
  acquisition->done = [this, name, revision, done = std::move(done),
                       ticket](absl::StatusOr<std::vector<AdapterHandle>> handles) mutable {
    if (!handles.ok()) return done(handles.status());
    Change change = [this, revision, held = std::move(handles->front())](
                        const Entry& entry) -> absl::StatusOr<std::optional<State>> {
      State next = entry.state;
      const RecordPtr* found = next.Find(revision);
      if (found == nullptr) {
        return RevisionMismatch(entry.name, revision, next.current->info->revision);
      }
      const RecordPtr target = *found;
      if (target == next.current) return std::nullopt;
      std::erase(next.kept, target);
      next.kept.insert(next.kept.begin(), next.current);
      next.current = target;
      // Its base model may be another one.
      next.public_id =
          PublicId(options_.public_id_template, entry.name, target->info->description.base_model);
      DropUnkept(next);
      return next;
    };
    TryChange(name, std::move(change), AdapterEventType::kReplaced, std::move(done), ticket);
  };
  TryAcquire(acquisition);
  return ticket;
}

AdapterRegistry::TicketPtr AdapterRegistry::Unload(UnloadRequest request, Done<UnloadResult> done) {
  auto ticket = std::make_shared<Ticket>();
  TryUnload(std::move(request), std::move(done), ticket);
  return ticket;
}

void AdapterRegistry::TryUnload(UnloadRequest request, Done<UnloadResult> done,
                                const TicketPtr& ticket) {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(request.name);
    if (ticket->cancelled || stopping_) {
      status = GaveUp();
    } else if (it == entries_.end()) {
      status = NotFound(request.name);
    } else if (it->second.job != nullptr) {
      Wait(it->second.job, it->second.job->waiters, ticket,
           [this, request, done = std::move(done), ticket](const Outcome&) mutable {
             TryUnload(std::move(request), std::move(done), ticket);
           });
      return;
    } else if (status = CheckUnload(it->second, request); status.ok()) {
      const JobPtr job = it->second.job = std::make_shared<Job>();
      ++running_;
      changes_.Submit([this, job, request, done = std::move(done)]() mutable {
        RunUnload(job, request, std::move(done));
      });
      return;
    }
  }
  done(status);
}

absl::Status AdapterRegistry::CheckUnload(const Entry& entry, const UnloadRequest& request) {
  const std::string revision =
      entry.state.current == nullptr ? "" : entry.state.current->info->revision;
  if (!request.revision.empty() && request.revision != revision) {
    return RevisionMismatch(request.name, request.revision, revision);
  }
  if (entry.state.pinned && !request.force) {
    return Error(Reason::kAdapterPinned,
                 fmt::format("adapter \"{}\" is pinned; unload it with force", request.name))
        .With("adapter", request.name);
  }
  return absl::OkStatus();
}

void AdapterRegistry::Remove(const std::string& name, Leases& leases,
                             std::vector<std::shared_ptr<Restoration>>& reading) {
  const auto it = entries_.find(name);
  Entry& entry = it->second;
  AddEvent(AdapterEventType::kUnloaded, entry);
  State former = std::exchange(entry.state, State());
  if (former.current != nullptr) {
    parameters_ -= former.current->info->description.parameter_count;
    if (former.current->lease != nullptr) --resident_;
    former.kept.push_back(former.current);
  }
  for (const RecordPtr& record : former.kept) {
    if (record->restoration != nullptr) reading.push_back(record->restoration);
    Retire(entry, *record, leases);
  }
  for (const Entry::Draining& draining : entry.draining) {
    auto lease = draining.lease.lock();
    if (lease && std::find(leases.begin(), leases.end(), lease) == leases.end()) {
      leases.push_back(std::move(lease));
    }
  }
  ReleasePublicId(former.public_id, name);
  entries_.erase(it);
}

void AdapterRegistry::RunUnload(const JobPtr& job, const UnloadRequest& request,
                                Done<UnloadResult> done) {
  bool is_written = options_.journal != nullptr;
  {
    absl::MutexLock lock(&mutex_);
    is_written = is_written && entries_.at(request.name).owner == AdapterOwner::kClients;
  }
  const absl::Status erased = is_written ? options_.journal->Erase(request.name) : absl::OkStatus();
  Leases leases;
  std::shared_ptr<FreeCounter> counter;
  bool at_once = true;
  if (erased.ok()) {
    absl::MutexLock lock(&mutex_);
    std::vector<std::shared_ptr<Restoration>> reading;
    Remove(request.name, leases, reading);
    const size_t pending = leases.size() + reading.size();
    at_once = !request.wait || pending == 0;
    Done<UnloadResult> when_freed;
    if (!at_once) std::swap(when_freed, done);
    counter = std::make_shared<FreeCounter>(static_cast<int>(pending), std::move(when_freed));
    for (const auto& restoration : reading) {
      restoration->ended.emplace_back([counter] { counter->Freed(0); });
    }
  }
  for (const LeasePtr& lease : leases) {
    lease->OnFreed([counter](int64_t bytes) { counter->Freed(bytes); });
  }
  leases.clear();  // frees, unless requests still hold them; before others of this name go on
  EndJob(job, request.name, erased.ok() ? Outcome(NotFound(request.name)) : erased);
  if (!erased.ok()) {
    done(erased);
  } else if (at_once) {
    done(counter->Result());
  }
  absl::MutexLock lock(&mutex_);
  --running_;
}

}  // namespace adapterd
