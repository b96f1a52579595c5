#include "core/registry/adapter_registry.h"

#include <algorithm>
#include <random>

#include "core/registry/registry_state.h"

namespace adapterd {
namespace {

constexpr int kChangeThreads = 4;   // each waits for the journal's disk most of its time
constexpr size_t kListChunk = 512;  // adapters that a listing looks at under one lock

uint64_t RandomCounter() {
  std::random_device random;
  return (uint64_t{random()} << 32) | random();
}

}  // namespace

AdapterRegistry::AdapterRegistry(RegistryOptions options, const Kernels& kernels,
                                 AdapterOpener opener, std::shared_ptr<MemoryBudget> budget,
                                 ThreadPool& io_pool)
    : options_(std::move(options)),
      kernels_(kernels),
      opener_(std::move(opener)),
      budget_(std::move(budget)),
      io_pool_(io_pool),
      signal_(std::make_shared<ReleaseSignal>([this] { Unpark(); })),
      tenant_calls_(TenantCalls(options_.tenant_quotas)),
      etag_counter_(RandomCounter()),
      changes_("changes", kChangeThreads) {
  budget_->Attach([this](int64_t missing) { return Evict(missing, nullptr, nullptr); },
                  [signal = signal_] { signal->Released(); });
}

AdapterRegistry::~AdapterRegistry() {
  signal_->Close();
  std::vector<RecordPtr> parked;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    for (auto& [name, entry] : entries_) {
      if (entry.job != nullptr) entry.job->cancellation.Cancel();
      if (entry.state.current == nullptr) continue;
      std::vector<RecordPtr> records = entry.state.kept;
      records.push_back(entry.state.current);
      for (const RecordPtr& record : records) {
        if (record->restoration != nullptr) record->restoration->cancellation.Cancel();
      }
    }
    parked.swap(parked_);
  }
  for (const RecordPtr& record : parked) FinishRestoration(record, GaveUp());
  {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](int* running) { return *running == 0; }, &running_));
  }
  Leases leases;  // the last records may go a moment later, with the jobs that ended just now
  {
    absl::MutexLock lock(&mutex_);
    while (!by_use_.empty()) leases.push_back(Detach(*by_use_.back()->records.back()));
  }
  leases.clear();
  budget_->Detach();
}

void AdapterRegistry::Restore(std::vector<AdapterRecord> records) {
  absl::MutexLock lock(&mutex_);
  for (AdapterRecord& from : records) {
    Entry& entry = entries_[from.name];
    const auto record_of = [&entry](RevisionRecord info) {
      auto record = std::make_shared<Record>();
      record->info = std::make_shared<const RevisionRecord>(std::move(info));
      record->bytes = record->info->memory_bytes;
      record->entry = &entry;
      return record;
    };
    entry.name = from.name;
    entry.source = from.current.source;
    entry.state = {from.public_id,
                   from.etag,
                   from.pinned,
                   from.enabled,
                   std::move(from.labels),
                   std::move(from.aliases),
                   record_of(std::move(from.current)),
                   {}};
    for (RevisionRecord& kept : from.kept) entry.state.kept.push_back(record_of(std::move(kept)));
    public_ids_.try_emplace(entry.state.public_id, entry.name);
    parameters_ += entry.state.current->info->description.parameter_count;
  }
}

void AdapterRegistry::Cancel(const TicketPtr& ticket) {
  Waiter waiter;
  AcquisitionPtr acquisition;
  {
    absl::MutexLock lock(&mutex_);
    ticket->cancelled = true;
    acquisition = ticket->acquisition;
    if (ticket->job != nullptr) {
      Job& job = *ticket->job;
      for (WaitingList* list : {&job.waiters, &job.ready_waiters}) {
        const auto it = std::find_if(list->begin(), list->end(),
                                     [&](const auto& waiting) { return waiting.first == ticket; });
        if (it == list->end()) continue;
        waiter = std::move(it->second);
        list->erase(it);
      }
      if (job.load && job.waiters.empty() && job.ready_waiters.empty()) job.cancellation.Cancel();
      ticket->job = nullptr;
    } else if (acquisition != nullptr && acquisition->done && !acquisition->answer) {
      acquisition->answer = GaveUp();
    } else {
      return;
    }
  }
  if (waiter) {
    waiter(GaveUp());
  } else {
    Answer(acquisition);
  }
}

absl::StatusOr<AdapterSnapshot> AdapterRegistry::Get(const std::string& name) const {
  absl::MutexLock lock(&mutex_);
  auto it = entries_.find(name);
  if (it == entries_.end()) return NotFound(name);
  return SnapshotOf(it->second);
}

bool AdapterRegistry::Matches(const Entry& entry, const ListQuery& query) {
  if (query.state && StateOf(entry) != *query.state) return false;
  if (!query.base_model.empty() &&
      (entry.state.current == nullptr ||
       entry.state.current->info->description.base_model != query.base_model)) {
    return false;
  }
  return std::all_of(query.labels.begin(), query.labels.end(), [&](const auto& label) {
    const auto it = entry.state.labels.find(label.first);
    return it != entry.state.labels.end() && it->second == label.second;
  });
}

ListPage AdapterRegistry::List(const ListQuery& query) const {
  ListPage page;
  page.sequence = events_.last_sequence();
  std::string from = query.name_prefix;
  for (bool done = false; !done;) {
    absl::MutexLock lock(&mutex_);
    auto it = entries_.lower_bound(from);
    for (size_t looked = 0; looked < kListChunk && !done; ++looked, ++it) {
      done = it == entries_.end() || it->first.rfind(query.name_prefix, 0) != 0;
      if (done) break;
      if (!Matches(it->second, query)) continue;
      ++page.total;
      if (!query.after.empty() && it->first <= query.after) continue;
      if (page.adapters.size() < query.limit) {
        page.adapters.push_back(SnapshotOf(it->second));
      } else {
        page.more = true;
      }
    }
    if (!done && it == entries_.end()) done = true;
    if (!done) from = it->first;
  }
  return page;
}

RegistryTotals AdapterRegistry::totals() const {
  absl::MutexLock lock(&mutex_);
  return {static_cast<int64_t>(entries_.size()),
          resident_,
          budget_->used(MemoryKind::kAdapters),
          budget_->limit(),
          parameters_,
          thrash_guard_.Thrashes(absl::Now(), budget_->limit())};
}

std::set<std::string> AdapterRegistry::StoredKeys() const {
  std::set<std::string> keys;
  const auto add = [&keys](const SourceSpec& source) {
    if (!source.stored.empty()) keys.insert(source.stored);
  };
  absl::MutexLock lock(&mutex_);
  for (const auto& [name, entry] : entries_) {
    if (entry.job != nullptr && entry.job->load) add(entry.job->load->source);
    if (entry.state.current != nullptr) add(entry.state.current->info->source);
    for (const RecordPtr& record : entry.state.kept) add(record->info->source);
  }
  return keys;
}

AdapterState AdapterRegistry::StateOf(const Entry& entry) {
  const RecordPtr& current = entry.state.current;
  if (current == nullptr) {
    return entry.failure.ok() ? AdapterState::kLoading : AdapterState::kFailed;
  }
  if (!current->error.ok()) return AdapterState::kFailed;
  return current->lease == nullptr ? AdapterState::kEvicted : AdapterState::kReady;
}

AdapterSnapshot AdapterRegistry::SnapshotOf(const Entry& entry) const {
  const State& state = entry.state;
  AdapterSnapshot snapshot;
  snapshot.name = entry.name;
  snapshot.public_id = state.public_id;
  snapshot.state = StateOf(entry);
  snapshot.owner = entry.owner;
  snapshot.pinned = state.pinned;
  snapshot.enabled = state.enabled;
  snapshot.labels = state.labels;
  snapshot.aliases = state.aliases;
  snapshot.etag = state.etag;
  snapshot.use_count = entry.usage->use_count.load(std::memory_order_relaxed);
  snapshot.in_flight = entry.usage->in_flight.load(std::memory_order_relaxed);
  if (const int64_t ns = entry.usage->last_use_unix_ns.load(std::memory_order_relaxed); ns != 0) {
    snapshot.last_use_time = absl::FromUnixNanos(ns);
  }
  for (const Entry::Draining& draining : entry.draining) {
    if (!draining.lease.expired()) snapshot.draining_revisions.push_back(draining.revision);
  }
  for (const RecordPtr& record : state.kept) {
    snapshot.kept_revisions.push_back(record->info->revision);
    if (record->lease != nullptr) snapshot.memory_bytes += record->lease->loaded()->memory_bytes();
  }
  if (state.current == nullptr) {
    snapshot.source_spec = entry.source;
    snapshot.source = entry.source.source;
    snapshot.error = entry.failure;
    return snapshot;
  }
  const Record& current = *state.current;
  const std::shared_ptr<const RevisionRecord>& info = current.info;
  snapshot.error = current.error;
  snapshot.source_spec = info->source;
  snapshot.source = info->source.source;
  snapshot.description = std::shared_ptr<const AdapterDescription>(info, &info->description);
  snapshot.digest = {info->revision, info->weights_sha256};
  snapshot.warnings = info->warnings;
  if (!entry.failure.ok()) {
    const std::string why(entry.failure.message());
    snapshot.warnings.push_back("what is in the folder now cannot be loaded: " + why);
  }
  snapshot.load_time = info->load_time;
  snapshot.load_duration = info->load_duration;
  snapshot.load_bytes = info->memory_bytes;
  if (current.lease != nullptr) {
    snapshot.manifest = current.lease->manifest();
    snapshot.memory_bytes += current.lease->loaded()->memory_bytes();
  }
  return snapshot;
}

void AdapterRegistry::AddEvent(AdapterEventType type, const Entry& entry) {
  events_.Append(type, SnapshotOf(entry));
}

}  // namespace adapterd
