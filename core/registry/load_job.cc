// How one load runs: open, compare, reserve, read, pack, publish. Everything here is on an I/O
// thread and outside the lock, but for the short decisions that say so.
#include <fmt/format.h>

#include <new>
#include <optional>

#include "core/base/status_macros.h"
#include "core/registry/adapter_builder.h"
#include "core/registry/adapter_registry.h"
#include "core/registry/load_checks.h"
#include "core/registry/registry_state.h"

namespace adapterd {
void AdapterRegistry::TryLoad(LoadRequest request, Done<LoadResult> done, const TicketPtr& ticket) {
  bool cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    cancelled = ticket->cancelled || stopping_;
    if (!cancelled) {
      Entry& entry = entries_[request.name];
      if (entry.job == nullptr) {
        entry.name = request.name;
        if (entry.state.current == nullptr) {
          entry.source = request.source;
          entry.owner = request.owner;
          entry.failure = absl::OkStatus();
          entry.state.pinned = request.pinned;
          entry.state.labels = request.labels;
        }
        entry.job = std::make_shared<Job>();
        entry.job->load = request;
        ++running_;
        io_pool_.Submit([this, job = entry.job] { Run(job); });
      }
      // A dropped load may still be running; its outcome is nobody's.
      const Job& job = *entry.job;
      if (job.load == request && !job.cancellation.IsCancelled()) {
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

AdapterRegistry::TicketPtr AdapterRegistry::Load(LoadRequest request, Done<LoadResult> done) {
  auto ticket = std::make_shared<Ticket>();
  TryLoad(std::move(request), std::move(done), ticket);
  return ticket;
}

void AdapterRegistry::Run(const JobPtr& job) {
  LoadEvent event;
  event.name = job->load->name;
  const absl::Time start = absl::Now();
  Outcome outcome = GuardedExecute(*job, event);
  if (!outcome.ok()) outcome = Annotate(outcome.status(), "adapter", event.name);
  event.status = outcome.status();
  event.duration = absl::Now() - start;
  if (options_.on_load) options_.on_load(event);
  KeepFailure(*job, outcome.status());
  EndJob(job, event.name, outcome);
  absl::MutexLock lock(&mutex_);
  --running_;
}

AdapterRegistry::Outcome AdapterRegistry::GuardedExecute(Job& job, LoadEvent& event) {
  try {
    return Execute(job, event);
  } catch (const std::bad_alloc&) {
    return Error(Reason::kMemoryBudgetExceeded, "the machine has no memory left for this adapter");
  } catch (const std::exception& exception) {
    return absl::InternalError(exception.what());
  }
}

AdapterRegistry::Outcome AdapterRegistry::Execute(Job& job, LoadEvent& event) {
  const LoadRequest& request = *job.load;
  const absl::Time opened_at = absl::Now();
  RETURN_IF_ERROR(job.cancellation.Check());
  ProblemList problems;
  std::unique_ptr<AdapterReader> reader = opener_(request.source, problems);
  RETURN_IF_ERROR(problems.ToStatus());

  LoadResult result;
  const LoadedState current = CurrentOf(request.name);
  RETURN_IF_ERROR(CheckSuccession(request, current));
  Comparison comparison = Comparison::kOtherContent;
  // Evicted, or computed from a base model that may have changed: only a read can tell.
  bool is_known = false;
  if (current.info != nullptr) {
    ASSIGN_OR_RETURN(ContentDigest digest, DigestOf(current, job.cancellation, *reader));
    RETURN_IF_ERROR(CheckDigest(request, *reader, job.cancellation, digest));
    ASSIGN_OR_RETURN(comparison, Compare(request, digest.revision, *reader->manifest(), current));
    is_known = current.is_resident && HasSameBase(request, *reader, current);
    result.already_loaded = comparison == Comparison::kSame;
    if (is_known && result.already_loaded) return Described(job, std::move(result));
  }
  RETURN_IF_ERROR(ClaimPublicId(job, *reader->manifest()));
  if (is_known && comparison == Comparison::kOtherOptions) {
    RETURN_IF_ERROR(ClaimQuota(job, std::nullopt));
    RETURN_IF_ERROR(Publish(job, nullptr, nullptr, result));
    return Described(job, std::move(result));
  }
  ASSIGN_OR_RETURN(Loaded loaded, ReadAndPack(job, *reader, problems, result.evicted));
  const bool same_content = comparison != Comparison::kOtherContent &&
                            loaded.digest.revision == current.info->revision &&
                            loaded.adapter->derived_digest() == current.info->derived_digest;
  if (result.already_loaded && !same_content) {
    result.already_loaded = false;
    if (!request.replace) {
      return IsThereWithOther("numbers of its base model", request, loaded.digest.revision,
                              current);
    }
  }
  const RecordPtr record = NewRecord(job, *reader, loaded, problems.warnings(), opened_at);
  RETURN_IF_ERROR(Publish(job, record, &loaded, result));
  event.read = true;
  loaded.adapter = nullptr;  // the registry's now: it may be evicted at any time
  signal_->Released();
  WakeUsers(job);
  AddFileDigest(job, *reader);
  return Described(job, std::move(result));
}

void AdapterRegistry::WakeUsers(Job& job) {
  WaitingList waiters;
  {
    absl::MutexLock lock(&mutex_);
    waiters.swap(job.ready_waiters);
    for (auto& [ticket, waiter] : waiters) ticket->job = nullptr;
  }
  for (auto& [ticket, waiter] : waiters) waiter(LoadResult());
}

// The digest of the whole file costs a pass of its own on one core, so it is taken while the
// adapter serves already. A file that changed meanwhile leaves it unknown, and so does a journal
// that fails now: the adapter itself is written down.
void AdapterRegistry::AddFileDigest(const Job& job, AdapterReader& reader) {
  const std::string& name = job.load->name;
  RecordPtr record;
  {
    absl::MutexLock lock(&mutex_);
    record = entries_.at(name).state.current;  // stays as long as the job runs
    if (!record->info->weights_sha256.empty()) return;
  }
  const std::string sha256 = reader.WeightsDigest(Cancellation()).value_or("");
  if (sha256.empty()) return;
  State state;
  {
    absl::MutexLock lock(&mutex_);
    RevisionRecord info = *record->info;
    info.weights_sha256 = sha256;
    record->info = std::make_shared<const RevisionRecord>(std::move(info));
    state = entries_.at(name).state;
  }
  WriteDown(name, job.load->owner, state).IgnoreError();
}

AdapterRegistry::Outcome AdapterRegistry::Described(const Job& job, LoadResult result) const {
  absl::MutexLock lock(&mutex_);
  result.adapter = SnapshotOf(entries_.at(job.load->name));
  return result;
}

LoadedState AdapterRegistry::CurrentOf(const std::string& name) const {
  absl::MutexLock lock(&mutex_);
  auto it = entries_.find(name);
  if (it == entries_.end() || it->second.state.current == nullptr) return {};
  const Entry& entry = it->second;
  const Record& record = *entry.state.current;
  return {record.info,      record.identity, record.opened_at,   record.lease != nullptr,
          entry.state.etag, entry.owner,     entry.state.pinned, entry.state.labels};
}

absl::StatusOr<ContentDigest> AdapterRegistry::DigestOf(const LoadedState& current,
                                                        const Cancellation& cancellation,
                                                        AdapterReader& reader) const {
  if (reader.identity() == current.identity &&
      ProvesUnchanged(current.identity, current.opened_at)) {
    return ContentDigest{current.info->revision, current.info->weights_sha256};
  }
  ProblemList problems;
  ContentDigest digest;
  ASSIGN_OR_RETURN(digest.revision, reader.Read(io_pool_, cancellation, nullptr, problems));
  return digest;
}

absl::Status AdapterRegistry::ClaimPublicId(Job& job, const AdapterManifest& manifest) {
  std::string id = PublicId(options_.public_id_template, job.load->name, manifest.base_model);
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckPublicId(id, job.load->name));
  public_ids_.try_emplace(id, job.load->name);
  job.public_id = std::move(id);
  return absl::OkStatus();
}

absl::Status AdapterRegistry::CheckPublicId(const std::string& id, const std::string& name) const {
  const auto found = public_ids_.find(id);
  if (found == public_ids_.end() || found->second == name) return absl::OkStatus();
  return Error(Reason::kAdapterExists,
               fmt::format("the public id \"{}\" belongs to adapter \"{}\" already", id,
                           found->second))
      .With("field", "public_id")
      .With("actual", found->second);
}

void AdapterRegistry::ReleasePublicId(const std::string& id, const std::string& name) {
  const auto found = public_ids_.find(id);
  if (found != public_ids_.end() && found->second == name) public_ids_.erase(found);
}

absl::StatusOr<AdapterRegistry::Loaded> AdapterRegistry::ReadAndPack(
    Job& job, AdapterReader& reader, ProblemList& problems, std::vector<std::string>& evicted) {
  const Entry* entry;
  {
    absl::MutexLock lock(&mutex_);
    entry = &entries_.at(job.load->name);
  }
  ASSIGN_OR_RETURN(int64_t bytes, LoadedAdapter::BytesFor(kernels_, *reader.manifest()));
  RETURN_IF_ERROR(ClaimQuota(job, bytes));
  ASSIGN_OR_RETURN(Reservation reservation, ReserveFor(bytes, entry, &evicted));
  AdapterBuilder builder(kernels_, budget_, reader.manifest(), std::move(reservation));
  Loaded loaded;
  loaded.manifest = reader.manifest();
  ASSIGN_OR_RETURN(loaded.digest.revision,
                   reader.Read(io_pool_, job.cancellation, &builder, problems));
  RETURN_IF_ERROR(CheckDigest(*job.load, reader, job.cancellation, loaded.digest));
  if (reader.base() != nullptr) {
    RETURN_IF_ERROR(builder.BindBase(*reader.base(), io_pool_, job.cancellation));
  }
  loaded.adapter = builder.Build(loaded.digest.revision);
  return loaded;
}

AdapterRegistry::RecordPtr AdapterRegistry::NewRecord(const Job& job, const AdapterReader& reader,
                                                      const Loaded& loaded,
                                                      std::vector<std::string> warnings,
                                                      absl::Time opened_at) {
  const absl::Time now = absl::Now();
  RevisionRecord info{loaded.digest.revision,
                      loaded.adapter->derived_digest(),
                      loaded.digest.weights_sha256,
                      job.load->source,
                      DescriptionOf(*loaded.manifest),
                      std::move(warnings),
                      loaded.adapter->memory_bytes(),
                      now,
                      now - opened_at};
  auto record = std::make_shared<Record>();
  record->info = std::make_shared<const RevisionRecord>(std::move(info));
  record->bytes = record->info->memory_bytes;
  record->identity = reader.identity();
  record->opened_at = opened_at;
  record->reloadable = job.load->reloadable;
  return record;
}

// `record` is null when only the options change.
AdapterRegistry::State AdapterRegistry::NextState(const Entry& entry, const Job& job,
                                                  const RecordPtr& record) {
  State next = entry.state;
  next.public_id = job.public_id;
  next.etag = NextEtag();
  if (!job.load->keep_options || next.current == nullptr) {
    next.pinned = job.load->pinned;
    next.labels = job.load->labels;
  }
  if (record == nullptr) return next;
  const auto is_same = [&](const RecordPtr& other) {
    return other->info->revision == record->info->revision;
  };
  std::erase_if(next.kept, is_same);
  if (next.current != nullptr && !is_same(next.current)) {
    next.kept.insert(next.kept.begin(), next.current);
  }
  next.current = record;
  DropUnkept(next);
  return next;
}

absl::Status AdapterRegistry::Publish(Job& job, const RecordPtr& record, const Loaded* loaded,
                                      LoadResult& result) {
  const std::string& name = job.load->name;
  State next;
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(job.cancellation.Check());
    next = NextState(entries_.at(name), job, record);
    if (result.already_loaded) next.etag = entries_.at(name).state.etag;  // only memory changes
  }
  RETURN_IF_ERROR(WriteDown(name, job.load->owner, next));
  Leases dropped;  // freed after the lock: destroyed last
  absl::MutexLock lock(&mutex_);
  Entry& entry = entries_.at(name);
  AdapterEventType event = AdapterEventType::kUpdated;
  const RecordPtr former = entry.state.current;
  if (former != nullptr && !result.already_loaded) {
    result.replaced_revision = former->info->revision;
  }
  if (record != nullptr) {
    record->entry = &entry;
    Attach(*record, loaded->adapter, loaded->manifest);
    event = former == nullptr ? AdapterEventType::kLoaded : AdapterEventType::kReplaced;
    const bool same_content = former != nullptr &&
                              former->info->revision == record->info->revision &&
                              former->info->derived_digest == record->info->derived_digest;
    if (same_content) event = AdapterEventType::kRestored;
    entry.source = job.load->source;
  }
  entry.failure = absl::OkStatus();
  Apply(entry, std::move(next), event, dropped);
  return absl::OkStatus();
}

// What a folder holds is shown, also when it cannot be loaded.
void AdapterRegistry::KeepFailure(const Job& job, const absl::Status& status) {
  if (status.ok() || job.load->owner != AdapterOwner::kFolder) return;
  absl::MutexLock lock(&mutex_);
  Entry& entry = entries_.at(job.load->name);
  if (entry.owner != AdapterOwner::kFolder) return;
  entry.failure = status;
  if (entry.state.current == nullptr) AddEvent(AdapterEventType::kFailed, entry);
}

}  // namespace adapterd
