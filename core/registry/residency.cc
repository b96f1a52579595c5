// Which content is in memory, and what goes when room is needed.
#include <algorithm>

#include "core/base/status_macros.h"
#include "core/registry/adapter_registry.h"
#include "core/registry/registry_state.h"

namespace adapterd {
namespace {

// Of the contents that could go, this many of the longest unused are weighed against each other.
constexpr size_t kCandidates = 8;

// What reading it again costs, in times of reading an adapter alone: with a base model, DoRA's
// norms take a pass over the base.
constexpr double kBaseCost = 4;

double ReloadCost(const RevisionRecord& info) { return info.source.has_base() ? kBaseCost : 1; }

}  // namespace

void AdapterRegistry::Attach(Record& record, std::shared_ptr<const LoadedAdapter> loaded,
                             std::shared_ptr<const AdapterManifest> manifest) {
  std::unique_ptr<Content>& slot = contents_[KeyOf(*record.info)];
  if (slot == nullptr) {
    slot = std::make_unique<Content>();
    slot->key = KeyOf(*record.info);
    slot->place = by_use_.insert(by_use_.end(), slot.get());
  } else {
    loaded = slot->records.front()->lease->loaded();
  }
  slot->records.push_back(&record);
  record.content = slot.get();
  record.lease = std::make_shared<const AdapterLease>(std::move(loaded), std::move(manifest));
  record.error = absl::OkStatus();
  Touch(record);
  if (record.IsCurrent()) ++resident_;
}

LeasePtr AdapterRegistry::Detach(Record& record) {
  Content& content = *record.content;
  std::erase(content.records, &record);
  if (content.records.empty()) {
    by_use_.erase(content.place);
    contents_.erase(std::string(content.key));
  }
  record.content = nullptr;
  if (record.IsCurrent()) --resident_;
  return std::move(record.lease);
}

void AdapterRegistry::Touch(Record& record) {
  record.content->last_use = absl::Now();
  by_use_.splice(by_use_.end(), by_use_, record.content->place);
}

// Whether its source holds another revision by now: the one of this name that was read from there
// last.
bool AdapterRegistry::IsSuperseded(const Record& record) {
  const State& state = record.entry->state;
  const auto is_newer = [&](const RecordPtr& other) {
    return other->info->source.source == record.info->source.source &&
           other->info->source.stored == record.info->source.stored &&
           other->info->load_time > record.info->load_time;
  };
  return is_newer(state.current) || std::any_of(state.kept.begin(), state.kept.end(), is_newer);
}

// Whether it could not come back, or is not meant to go.
bool AdapterRegistry::Keeps(const Content& content) {
  return std::any_of(content.records.begin(), content.records.end(), [](const Record* record) {
    if (!record->reloadable || IsSuperseded(*record)) return true;
    return record->IsCurrent() && record->entry->state.pinned;
  });
}

absl::Status AdapterRegistry::CheckRoom(const std::set<RecordPtr>& wanted) const {
  std::set<std::string> keys;  // equal content of two names is needed once
  int64_t needed = 0;
  for (const RecordPtr& record : wanted) {
    if (!keys.insert(KeyOf(*record->info)).second) continue;
    const auto here = contents_.find(KeyOf(*record->info));
    needed += here == contents_.end() ? record->bytes : here->second->loaded().memory_bytes();
  }
  int64_t others = budget_->used(MemoryKind::kBaseModels);
  for (const Content* content : by_use_) {
    if (Keeps(*content) && keys.count(content->key) == 0) {
      others += content->loaded().memory_bytes();
    }
  }
  const int64_t limit = budget_->limit();
  if (needed <= limit - others) return absl::OkStatus();
  return Error(Reason::kMemoryBudgetExceeded,
               fmt::format("the request's adapters need {} bytes together; of the budget of {} "
                           "bytes, {} belong to what stays in memory",
                           needed, limit, others))
      .With("needed_bytes", needed)
      .With("used_bytes", budget_->used())
      .With("budget_bytes", limit);
}

// Enough to free `missing` bytes, or nothing. What belongs to `spare` only goes when all else is
// not enough.
std::vector<AdapterRegistry::Content*> AdapterRegistry::PlanEviction(int64_t missing,
                                                                     const Entry* spare) const {
  std::vector<Content*> candidates;
  std::vector<Content*> spared;
  int64_t available = 0;
  for (Content* content : by_use_) {
    const bool in_use =
        std::any_of(content->records.begin(), content->records.end(),
                    [](const Record* record) { return record->lease.use_count() > 1; });
    if (in_use || Keeps(*content)) continue;
    const bool is_spared = std::any_of(content->records.begin(), content->records.end(),
                                       [&](const Record* r) { return r->entry == spare; });
    (is_spared ? spared : candidates).push_back(content);
    if (!is_spared) available += content->loaded().memory_bytes();
    if (available >= missing && candidates.size() >= kCandidates) break;
  }
  const absl::Time now = absl::Now();
  const auto score = [now](const Content* content) {
    return absl::ToDoubleSeconds(now - content->last_use) /
           ReloadCost(*content->records.front()->info);
  };
  std::vector<Content*> plan;
  while (missing > 0 && !(candidates.empty() && spared.empty())) {
    std::vector<Content*>& from = candidates.empty() ? spared : candidates;
    const auto end = from.begin() + static_cast<int64_t>(std::min(from.size(), kCandidates));
    const auto best = std::max_element(
        from.begin(), end, [&](const auto* a, const auto* b) { return score(a) < score(b); });
    missing -= (*best)->loaded().memory_bytes();
    plan.push_back(*best);
    from.erase(best);
  }
  if (missing > 0) plan.clear();
  return plan;
}

bool AdapterRegistry::Evict(int64_t missing, const Entry* spare, std::vector<std::string>* names) {
  Leases dropped;
  std::vector<std::string> detached;
  std::vector<std::string> evicted;  // without those that only lost a kept revision
  {
    absl::MutexLock lock(&mutex_);
    for (Content* content : PlanEviction(missing, spare)) {
      for (Record* record : std::vector<Record*>(content->records)) {
        dropped.push_back(Detach(*record));
        detached.push_back(record->entry->name);
        if (!record->IsCurrent()) continue;
        evicted.push_back(record->entry->name);
        AddEvent(AdapterEventType::kEvicted, *record->entry);
      }
    }
  }
  if (dropped.empty()) return false;
  dropped.clear();
  for (const std::string& name : detached) {
    if (options_.on_evict) options_.on_evict(name);
  }
  if (names != nullptr) names->insert(names->end(), evicted.begin(), evicted.end());
  return true;
}

absl::StatusOr<Reservation> AdapterRegistry::ReserveFor(int64_t bytes, const Entry* spare,
                                                        std::vector<std::string>* evicted) {
  while (true) {
    absl::StatusOr<Reservation> reservation = budget_->TryReserve(bytes);
    if (reservation.ok() || bytes > budget_->limit()) return reservation;
    const int64_t missing = bytes - (budget_->limit() - budget_->used());
    if (missing > 0 && !Evict(missing, spare, evicted)) return reservation;
  }
}

void AdapterRegistry::SetMemoryBudget(int64_t bytes) {
  budget_->SetLimit(bytes);
  EvictUnused(budget_->used() - bytes);
  Unpark();
}

void AdapterRegistry::EvictUnused(int64_t bytes) {
  const int64_t wanted = budget_->used() - bytes;
  // All at once goes what makes enough room; if nothing does, one after the other.
  for (int64_t missing; (missing = budget_->used() - wanted) > 0;) {
    if (!Evict(missing, nullptr, nullptr) && !Evict(1, nullptr, nullptr)) break;
  }
}

}  // namespace adapterd
