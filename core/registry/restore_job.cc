// How evicted content comes back: read from its source again, and only if it is still the same.
// On I/O threads and outside the lock, but for the short decisions that say so.
#include <algorithm>
#include <atomic>
#include <new>

#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/registry/adapter_builder.h"
#include "core/registry/adapter_registry.h"
#include "core/registry/load_checks.h"
#include "core/registry/registry_state.h"

namespace adapterd {
namespace {

// A file that is only touched while it is read reads well the next time.
constexpr int kMaxAttempts = 3;

// What opening found wrong. A hosted base that is not there (after a restart none is) may come
// back: until then the adapter cannot.
absl::Status WhyNotOpened(const RevisionRecord& expected, const ProblemList& problems) {
  absl::Status status = problems.ToStatus();
  if (status.ok() || GetErrorDetails(status).reason != Reason::kBaseModelNotFound) return status;
  return Error(Reason::kBaseRequired,
               fmt::format("the adapter was loaded with base model {}, which is not loaded now",
                           Quoted(expected.source.hosted_base)))
      .With("field", "hosted_base")
      .With("expected", expected.source.hosted_base);
}

absl::Status IsOtherContent(const RevisionRecord& expected, const std::string& what,
                            const std::string& actual) {
  const bool is_stored = !expected.source.stored.empty();
  return Error(is_stored ? Reason::kStoreCorrupt : Reason::kSourceChanged,
               fmt::format("{} holds other content now: {} is {}",
                           is_stored ? "the store" : "the source", what, actual))
      .With("expected", expected.revision)
      .With("actual", actual);
}

// Errors that say nothing about the content.
bool MayPass(const absl::Status& status) {
  if (status.code() == absl::StatusCode::kCancelled) return true;
  const Reason reason = GetErrorDetails(status).reason;
  return reason == Reason::kMemoryBudgetExceeded || reason == Reason::kSourceUnavailable ||
         reason == Reason::kBaseRequired;
}

}  // namespace

void AdapterRegistry::StartRestoration(const RecordPtr& record) {
  if (record->restoration != nullptr && !record->restoration->cancellation.IsCancelled()) return;
  const bool is_running = record->restoration != nullptr;
  record->restoration = std::make_shared<Restoration>();
  if (is_running) return;  // the dropped one goes on as this one
  ++running_;
  io_pool_.Submit([this, record] { RunRestoration(record); });
}

void AdapterRegistry::RunRestoration(const RecordPtr& record) {
  std::shared_ptr<const RevisionRecord> info;
  std::shared_ptr<const RevisionRecord> other;  // of equal content that is in memory
  LeasePtr lease;                               // of that; keeps it there meanwhile
  Cancellation cancellation;
  {
    absl::MutexLock lock(&mutex_);
    info = record->info;
    cancellation = record->restoration->cancellation;
    const auto same = contents_.find(KeyOf(*info));
    if (same != contents_.end()) {
      other = same->second->records.front()->info;
      lease = same->second->records.front()->lease;
    }
  }
  absl::StatusOr<Loaded> loaded = absl::InternalError("not read");
  int64_t lacking = 0;
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    loaded = lease != nullptr ? Share(*info, *other, lease, cancellation)
                              : ReadAgain(*info, cancellation, lacking);
    const bool again = GetErrorDetails(loaded.status()).reason == Reason::kSourceChanged;
    if (loaded.ok() || !again) break;
  }
  if (lease != nullptr) {
    lease = nullptr;
    signal_->Released();
  }
  if (lacking == 0 || !Park(record, lacking)) FinishRestoration(record, std::move(loaded));
}

// The weights of `lease`, with the manifest of this name's own source, whose content has to be the
// same still.
absl::StatusOr<AdapterRegistry::Loaded> AdapterRegistry::Share(
    const RevisionRecord& expected, const RevisionRecord& other, const LeasePtr& lease,
    const Cancellation& cancellation) const try {
  if (expected.source == other.source) return Loaded{lease->loaded(), lease->manifest(), {}, lease};
  ProblemList problems;
  std::unique_ptr<AdapterReader> reader = opener_(expected.source, problems);
  RETURN_IF_ERROR(WhyNotOpened(expected, problems));
  ASSIGN_OR_RETURN(const std::string revision,
                   reader->Read(io_pool_, cancellation, nullptr, problems));
  if (revision != expected.revision) return IsOtherContent(expected, "its revision", revision);
  return Loaded{lease->loaded(), reader->manifest(), {}, lease};
} catch (const std::exception& exception) {
  return absl::InternalError(exception.what());
}

// `lacking`: what it could not reserve, when that is why it fails.
absl::StatusOr<AdapterRegistry::Loaded> AdapterRegistry::ReadAgain(const RevisionRecord& expected,
                                                                   const Cancellation& cancellation,
                                                                   int64_t& lacking) try {
  RETURN_IF_ERROR(cancellation.Check());
  ProblemList problems;
  std::unique_ptr<AdapterReader> reader = opener_(expected.source, problems);
  RETURN_IF_ERROR(WhyNotOpened(expected, problems));
  ASSIGN_OR_RETURN(const int64_t bytes, LoadedAdapter::BytesFor(kernels_, *reader->manifest()));
  if (bytes != expected.memory_bytes) {
    // Other content, which nothing should be evicted for; or packed for another machine.
    ASSIGN_OR_RETURN(const std::string revision,
                     reader->Read(io_pool_, cancellation, nullptr, problems));
    if (revision != expected.revision) return IsOtherContent(expected, "its revision", revision);
  }
  absl::StatusOr<Reservation> reservation = ReserveFor(bytes, nullptr, nullptr);
  if (!reservation.ok()) {
    lacking = bytes;
    return reservation.status();
  }
  AdapterBuilder builder(kernels_, budget_, reader->manifest(), *std::move(reservation));
  ASSIGN_OR_RETURN(std::string revision, reader->Read(io_pool_, cancellation, &builder, problems));
  if (revision != expected.revision) return IsOtherContent(expected, "its revision", revision);
  if (reader->base() != nullptr) {
    RETURN_IF_ERROR(builder.BindBase(*reader->base(), io_pool_, cancellation));
  }
  Loaded loaded{builder.Build(std::move(revision)), reader->manifest(), {}, nullptr};
  if (loaded.adapter->derived_digest() != expected.derived_digest) {
    return IsOtherContent(expected, "what the base model adds", loaded.adapter->derived_digest());
  }
  return loaded;
} catch (const std::bad_alloc&) {
  return Error(Reason::kMemoryBudgetExceeded, "the machine has no memory left for this adapter");
} catch (const std::exception& exception) {
  return absl::InternalError(exception.what());
}

absl::StatusOr<std::shared_ptr<const AdapterManifest>> AdapterRegistry::ReadManifest(
    const std::string& name, const std::string& revision, const Cancellation& cancellation) const {
  const LoadedState current = CurrentOf(name);
  if (current.info == nullptr) return NotFound(name);
  if (current.info->revision != revision) {
    return RevisionMismatch(name, revision, current.info->revision);
  }
  const auto read = [&]() -> absl::StatusOr<std::shared_ptr<const AdapterManifest>> {
    ProblemList problems;
    std::unique_ptr<AdapterReader> reader = opener_(current.info->source, problems);
    RETURN_IF_ERROR(WhyNotOpened(*current.info, problems));
    ASSIGN_OR_RETURN(const ContentDigest digest, DigestOf(current, cancellation, *reader));
    if (digest.revision == revision) return reader->manifest();
    return IsOtherContent(*current.info, "its revision", digest.revision);
  };
  auto manifest = read();
  if (manifest.ok() || MayPass(manifest.status())) return manifest;
  return CannotServe(name, manifest.status());
}

// Whether it waits until `bytes` can be had: what stands in the way is in use, and will not be
// forever. Those for whom that would not be enough are answered.
bool AdapterRegistry::Park(const RecordPtr& record, int64_t bytes) {
  std::vector<AcquisitionPtr> refused;
  {
    absl::MutexLock lock(&mutex_);
    record->bytes = bytes;
    for (const AcquisitionPtr& waiting : record->restoration->waiters) {
      if (waiting->answer) continue;
      if (absl::Status room = CheckRoom(waiting->wanted); !room.ok()) {
        waiting->answer = std::move(room);
        refused.push_back(waiting);
      }
    }
  }
  for (const AcquisitionPtr& acquisition : refused) Answer(acquisition);
  absl::MutexLock lock(&mutex_);
  if (stopping_ || record->restoration->cancellation.IsCancelled()) return false;
  parked_.push_back(record);
  signal_->Want(true);
  // Whoever let go before it was wanted told nobody, and so did another name's equal content.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const int64_t missing = bytes - (budget_->limit() - budget_->used());
  const bool is_here = contents_.count(KeyOf(*record->info)) > 0;
  if (is_here || missing <= 0 || !PlanEviction(missing, nullptr).empty()) SubmitParked();
  return true;
}

void AdapterRegistry::Unpark() {
  absl::MutexLock lock(&mutex_);
  SubmitParked();
}

void AdapterRegistry::SubmitParked() {
  if (stopping_) return;  // the destructor has taken them
  signal_->Want(false);
  for (const RecordPtr& record : parked_) {
    io_pool_.Submit([this, record] { RunRestoration(record); });
  }
  parked_.clear();
}

void AdapterRegistry::FinishRestoration(const RecordPtr& record, absl::StatusOr<Loaded> loaded) {
  std::vector<AcquisitionPtr> answered;
  std::shared_ptr<Restoration> restoration;
  LoadEvent event;
  bool began_to_thrash = false;
  {
    absl::MutexLock lock(&mutex_);
    if (absl::IsCancelled(loaded.status()) && !record->restoration->cancellation.IsCancelled()) {
      // Somebody else came after the last one had left.
      io_pool_.Submit([this, record] { RunRestoration(record); });
      return;
    }
    restoration = std::move(record->restoration);
    record->restoration = nullptr;
    const absl::Time now = absl::Now();
    event.restored = true;
    event.duration = now - restoration->start;
    event.status = loaded.status();
    if (record->entry != nullptr) {
      event.name = record->entry->name;
      if (loaded.ok()) {
        event.read = contents_.count(KeyOf(*record->info)) == 0;
        Attach(*record, loaded->adapter, loaded->manifest);
        if (event.read) thrash_guard_.Restored(now, record->content->loaded().memory_bytes());
        if (record->IsCurrent()) AddEvent(AdapterEventType::kRestored, *record->entry);
      } else if (!MayPass(loaded.status())) {
        record->error = loaded.status();
        if (record->IsCurrent()) AddEvent(AdapterEventType::kFailed, *record->entry);
      }
    }
    const bool thrashes = thrash_guard_.Thrashes(now, budget_->limit());
    began_to_thrash = !std::exchange(is_thrashing_, thrashes) && thrashes;
    for (const AcquisitionPtr& waiting : restoration->waiters) {
      waiting->missing.erase(record);
      if (waiting->answer) continue;
      if (record->lease != nullptr) waiting->gathered.push_back(record->lease);
      const bool is_transient = !loaded.ok() && record->error.ok();
      if (is_transient && record->entry != nullptr && !stopping_) {
        waiting->answer = loaded.status();
      } else if (waiting->missing.empty() || !loaded.ok()) {
        Resolve(waiting);  // finds all there; or FAILED, or another revision
      }
      if (waiting->answer) answered.push_back(waiting);
    }
  }
  loaded = absl::InternalError("attached");  // equal content may have been there: this copy goes
  if (options_.on_load && !event.name.empty() && !absl::IsCancelled(event.status)) {
    options_.on_load(event);
  }
  if (began_to_thrash && options_.on_thrash) options_.on_thrash();
  for (auto& ended : restoration->ended) ended();
  signal_->Released();
  for (const AcquisitionPtr& acquisition : answered) Answer(acquisition);
  absl::MutexLock lock(&mutex_);
  --running_;
}

}  // namespace adapterd
