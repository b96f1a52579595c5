// How requests get their handles: at once when all is in memory, else when it has come back.
#include <algorithm>
#include <atomic>

#include "core/base/status_macros.h"
#include "core/registry/adapter_registry.h"
#include "core/registry/registry_state.h"

namespace adapterd {
namespace {

absl::Status IsDisabled(const std::string& name) {
  return Error(Reason::kAdapterDisabled, fmt::format("adapter \"{}\" is disabled", name))
      .With("adapter", name);
}

}  // namespace

AdapterRegistry::TicketPtr AdapterRegistry::Acquire(std::vector<AdapterRef> refs,
                                                    bool skip_disabled,
                                                    Done<std::vector<AdapterHandle>> done) {
  auto acquisition = std::make_shared<Acquisition>();
  acquisition->refs = std::move(refs);
  acquisition->disabled = skip_disabled ? Disabled::kSkip : Disabled::kRefuse;
  acquisition->done = std::move(done);
  const auto ticket = acquisition->ticket = std::make_shared<Ticket>();
  ticket->acquisition = acquisition;
  TryAcquire(acquisition);
  return ticket;
}

void AdapterRegistry::TryAcquire(const AcquisitionPtr& acquisition) {
  {
    absl::MutexLock lock(&mutex_);
    if (!acquisition->answer) Resolve(acquisition);
    if (!acquisition->answer) return;
  }
  Answer(acquisition);
}

absl::StatusOr<AdapterRegistry::RecordPtr> AdapterRegistry::FindRevision(const AdapterRef& ref,
                                                                         const Entry& entry) {
  std::string revision = ref.revision;
  if (!ref.alias.empty()) {
    const auto alias = entry.state.aliases.find(ref.alias);
    if (alias == entry.state.aliases.end()) {
      return Error(Reason::kAdapterNotFound,
                   fmt::format("adapter \"{}\" has no alias \"{}\"", ref.name, ref.alias))
          .With("adapter", ref.name);
    }
    if (!revision.empty() && revision != alias->second) {
      return RevisionMismatch(ref.name + "@" + ref.alias, revision, alias->second);
    }
    revision = alias->second;
  }
  if (revision.empty()) return entry.state.current;
  const RecordPtr* record = entry.state.Find(revision);
  if (record == nullptr) {
    return RevisionMismatch(ref.name, revision, entry.state.current->info->revision);
  }
  return *record;
}

absl::StatusOr<AdapterRegistry::Use> AdapterRegistry::FindUse(const AdapterRef& ref,
                                                              Disabled disabled,
                                                              JobPtr& first_load) const {
  const auto it = entries_.find(ref.name);
  if (it == entries_.end()) return NotFound(ref.name);
  const Entry& entry = it->second;
  if (entry.state.current == nullptr) {
    if (entry.job == nullptr) return CannotServe(ref.name, entry.failure);
    first_load = entry.job;
    return Use();
  }
  if (!entry.state.enabled && disabled != Disabled::kTake) {
    if (disabled == Disabled::kRefuse) return IsDisabled(ref.name);
    return Use();
  }
  ASSIGN_OR_RETURN(RecordPtr record, FindRevision(ref, entry));
  if (!record->error.ok()) return CannotServe(ref.name, record->error);
  return Use{std::move(record), entry.usage};
}

absl::StatusOr<std::vector<AdapterRegistry::Use>> AdapterRegistry::FindUses(
    const std::vector<AdapterRef>& refs, Disabled disabled, JobPtr& first_load) const {
  std::vector<Use> uses;
  uses.reserve(refs.size());
  for (const AdapterRef& ref : refs) {
    ASSIGN_OR_RETURN(Use use, FindUse(ref, disabled, first_load));
    if (first_load != nullptr) break;
    uses.push_back(std::move(use));
  }
  return uses;
}

bool AdapterRegistry::AreAllHere(const std::vector<Use>& uses) {
  return std::all_of(uses.begin(), uses.end(), [](const Use& use) {
    return use.record == nullptr || use.record->lease != nullptr;
  });
}

std::optional<absl::StatusOr<std::vector<AdapterHandle>>> AdapterRegistry::AcquireNow(
    const std::vector<AdapterRef>& refs, bool skip_disabled) {
  absl::MutexLock lock(&mutex_);
  if (stopping_) return std::nullopt;
  JobPtr first_load;
  const absl::StatusOr<std::vector<Use>> uses =
      FindUses(refs, skip_disabled ? Disabled::kSkip : Disabled::kRefuse, first_load);
  if (!uses.ok()) return uses.status();
  if (first_load != nullptr || !AreAllHere(*uses)) return std::nullopt;
  return Grant(*uses);
}

// Looks at all refs anew: what they mean may have changed while it waited. Leaves an answer, or
// something that it waits for.
void AdapterRegistry::Resolve(const AcquisitionPtr& acquisition) {
  Acquisition& a = *acquisition;
  if (a.ticket->cancelled || stopping_) {
    a.answer = GaveUp();
    return;
  }
  JobPtr first_load;
  const absl::StatusOr<std::vector<Use>> uses = FindUses(a.refs, a.disabled, first_load);
  if (!uses.ok()) {
    a.answer = uses.status();
    return;
  }
  if (first_load != nullptr) {
    StopWaiting(acquisition);
    a.wanted.clear();
    DropUnwanted(a);
    Wait(first_load, first_load->ready_waiters, a.ticket,
         [this, acquisition](const Outcome&) { TryAcquire(acquisition); });
    return;
  }
  if (AreAllHere(*uses)) {
    a.answer = Grant(*uses);
    return;
  }
  a.wanted.clear();
  for (const Use& use : *uses) {
    if (use.record != nullptr) a.wanted.insert(use.record);
  }
  if (absl::Status room = CheckRoom(a.wanted); !room.ok()) {
    a.answer = std::move(room);
  } else if (a.wanted.size() == 1 || StandInLine(acquisition)) {
    BringBack(acquisition);
  }
}

std::vector<AdapterHandle> AdapterRegistry::Grant(const std::vector<Use>& uses) {
  std::vector<AdapterHandle> handles;
  handles.reserve(uses.size());
  for (const Use& use : uses) {
    if (use.record == nullptr) {
      handles.emplace_back();
      continue;
    }
    Touch(*use.record);
    handles.emplace_back(use.record->lease, use.usage, signal_);
  }
  return handles;
}

bool AdapterRegistry::StandInLine(const AcquisitionPtr& acquisition) {
  if (!acquisition->in_line) line_.push_back(acquisition);
  acquisition->in_line = true;
  return line_.front() == acquisition;
}

void AdapterRegistry::LeaveLine(Acquisition& acquisition) {
  if (!acquisition.in_line) return;
  acquisition.in_line = false;
  const bool was_first = line_.front().get() == &acquisition;
  line_.remove_if([&](const AcquisitionPtr& waiting) { return waiting.get() == &acquisition; });
  if (was_first && !line_.empty()) {
    changes_.Submit([this, next = line_.front()] { TryAcquire(next); });
  }
}

void AdapterRegistry::BringBack(const AcquisitionPtr& acquisition) {
  DropUnwanted(*acquisition);
  for (const RecordPtr& record : acquisition->wanted) {
    if (record->lease != nullptr) {
      acquisition->gathered.push_back(record->lease);
      continue;
    }
    StartRestoration(record);
    if (!acquisition->missing.insert(record).second) continue;  // it waits for this one already
    record->restoration->waiters.push_back(acquisition);
  }
}

// What it gathered and does not want any more (it was replaced meanwhile) could be the very memory
// that it waits for.
void AdapterRegistry::DropUnwanted(Acquisition& acquisition) {
  Leases unwanted;
  unwanted.swap(acquisition.gathered);
  std::erase_if(unwanted, [&](const LeasePtr& lease) {
    return std::any_of(acquisition.wanted.begin(), acquisition.wanted.end(),
                       [&](const RecordPtr& record) { return record->lease == lease; });
  });
  if (unwanted.empty()) return;
  changes_.Submit([this, unwanted = std::move(unwanted)]() mutable {
    unwanted.clear();
    signal_->Released();
  });
}

// Whatever an answered acquisition still waits for need not be done for it.
void AdapterRegistry::StopWaiting(const AcquisitionPtr& acquisition) {
  bool is_dropped = false;
  for (const RecordPtr& record : acquisition->missing) {
    if (record->restoration == nullptr) continue;
    std::erase(record->restoration->waiters, acquisition);
    if (!record->restoration->waiters.empty()) continue;
    record->restoration->cancellation.Cancel();
    is_dropped = true;
  }
  acquisition->missing.clear();
  if (is_dropped) SubmitParked();
  LeaveLine(*acquisition);
}

void AdapterRegistry::Answer(const AcquisitionPtr& acquisition) {
  Leases gathered;
  Done<std::vector<AdapterHandle>> done;
  {
    absl::MutexLock lock(&mutex_);
    if (!acquisition->done) return;
    std::swap(done, acquisition->done);
    acquisition->ticket->acquisition = nullptr;  // which would keep both alive
    gathered.swap(acquisition->gathered);
    StopWaiting(acquisition);
  }
  const bool held = !gathered.empty();
  gathered.clear();
  if (held) signal_->Released();
  done(*std::move(acquisition->answer));
}

}  // namespace adapterd
