// How one load runs: open, compare, reserve, read, pack, publish. Everything here is on an I/O
// thread and outside the lock, but for the short decisions that say so.
#include <fmt/format.h>

#include <new>
#include <optional>

#include "core/base/status_macros.h"
#include "core/registry/adapter_builder.h"
#include "core/registry/adapter_registry.h"
#include "core/registry/registry_state.h"

namespace adapterd {
namespace {

// A write within one tick of the file system's clock does not move ctime again, so a file that
// changed this shortly before it was read proves nothing by an unchanged ctime. Coarse file systems
// tick in seconds, and show it by times without a fraction.
constexpr absl::Duration kFineTick = absl::Milliseconds(100);
constexpr absl::Duration kCoarseTick = absl::Seconds(3);

bool ProvesUnchanged(const SourceIdentity& identity, absl::Time opened_at) {
  for (const auto& [name, file] : identity.files) {
    const bool coarse = file.changed_ns % 1'000'000'000 == 0;
    const absl::Time changed = absl::FromUnixNanos(file.changed_ns);
    if (changed + (coarse ? kCoarseTick : kFineTick) > opened_at) return false;
  }
  return true;
}

// The expected digest is the revision, or that of the weights file, which takes another pass.
absl::Status CheckDigest(const LoadRequest& request, AdapterReader& reader,
                         const Cancellation& cancellation, ContentDigest& digest) {
  if (request.expected_digest.empty() || request.expected_digest == digest.revision) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(digest.weights_sha256, reader.WeightsDigest(cancellation));
  if (request.expected_digest == digest.weights_sha256) return absl::OkStatus();
  return Error(Reason::kDigestMismatch,
               fmt::format("adapter \"{}\" has revision {} (weights file {}), not the expected "
                           "digest {}",
                           request.name, digest.revision, digest.weights_sha256,
                           request.expected_digest))
      .With("expected", request.expected_digest)
      .With("actual", digest.revision);
}

enum class Comparison { kSame, kOtherOptions, kOtherContent };

// What a request for a name in use amounts to; ADAPTER_EXISTS when it differs and may not replace.
// `revision` and `manifest` are of the request's source, `loaded` and `current` of what serves now.
// `same_base`: what was derived from the base checkpoint, if anything, is still the same.
absl::StatusOr<Comparison> Compare(const LoadRequest& request, const std::string& revision,
                                   const AdapterManifest& manifest, bool same_base,
                                   const LoadRequest& loaded, const LoadedAdapter& current) {
  const bool same_content = revision == current.revision() && same_base &&
                            manifest.base_model == current.manifest().base_model;
  const bool same_options = request.pinned == loaded.pinned && request.labels == loaded.labels;
  if (same_content && same_options) return Comparison::kSame;
  if (!request.replace) {
    return Error(
               Reason::kAdapterExists,
               fmt::format("adapter \"{}\" is loaded with other {} (revision {}); set replace to "
                           "swap it",
                           request.name, same_content ? "options" : "content", current.revision()))
        .With("adapter", request.name)
        .With("expected", revision)
        .With("actual", current.revision());
  }
  return same_content ? Comparison::kOtherOptions : Comparison::kOtherContent;
}

std::string PublicId(std::string id_template, const std::string& name,
                     const AdapterManifest& manifest) {
  const auto substitute = [&id_template](const std::string& key, const std::string& value) {
    for (size_t at = 0; (at = id_template.find(key, at)) != std::string::npos; at += value.size()) {
      id_template.replace(at, key.size(), value);
    }
  };
  substitute("{name}", name);  // first: a name holds no braces, a base model may
  substitute("{base}", manifest.base_model);
  return id_template;
}

}  // namespace

void AdapterRegistry::Run(const JobPtr& job) {
  LoadEvent event;
  event.name = job->request.name;
  const absl::Time start = absl::Now();
  Outcome outcome = GuardedExecute(*job, event);
  if (!outcome.ok()) outcome = Annotate(outcome.status(), "adapter", job->request.name);
  event.status = outcome.status();
  event.duration = absl::Now() - start;
  if (options_.on_load) options_.on_load(event);
  Finish(job, outcome);
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
  const absl::Time opened_at = absl::Now();
  RETURN_IF_ERROR(job.cancellation.Check());
  ProblemList problems;
  std::unique_ptr<AdapterReader> reader = opener_(job.request.source, problems);
  RETURN_IF_ERROR(problems.ToStatus());

  Comparison comparison = Comparison::kOtherContent;
  if (const std::optional<Current> current = CurrentOf(job.request.name)) {
    ASSIGN_OR_RETURN(ContentDigest digest, DigestOf(*current, job, *reader));
    RETURN_IF_ERROR(CheckDigest(job.request, *reader, job.cancellation, digest));
    ASSIGN_OR_RETURN(comparison, Compare(job.request, digest.revision, *reader->manifest(),
                                         SameBase(*current, job.request, *reader), current->request,
                                         *current->loaded));
    if (comparison == Comparison::kSame) return AlreadyLoaded(job);
  }
  RETURN_IF_ERROR(ClaimPublicId(job, *reader->manifest()));
  Published published;
  published.identity = reader->identity();
  published.opened_at = opened_at;
  if (comparison == Comparison::kOtherContent) {
    ASSIGN_OR_RETURN(published.loaded, ReadAndPack(job, *reader, problems, published));
  }
  published.warnings = problems.warnings();
  RETURN_IF_ERROR(Publish(job, published));
  event.read = published.loaded != nullptr;
  WakeUsers(job);
  return Described(job, *reader, published);
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
// adapter serves already. A file that changed meanwhile leaves it unknown.
AdapterRegistry::Outcome AdapterRegistry::Described(const Job& job, AdapterReader& reader,
                                                    const Published& published) {
  std::string weights_sha256 = published.weights_sha256;
  if (published.loaded != nullptr && weights_sha256.empty()) {
    weights_sha256 = reader.WeightsDigest(Cancellation()).value_or("");
  }
  LoadResult result;
  result.replaced_revision = published.replaced_revision;
  absl::MutexLock lock(&mutex_);
  Entry& entry = entries_.at(job.request.name);  // stays as long as the job runs
  if (published.loaded != nullptr) entry.weights_sha256 = std::move(weights_sha256);
  result.adapter = SnapshotOf(entry);
  return result;
}

std::optional<AdapterRegistry::Current> AdapterRegistry::CurrentOf(const std::string& name) const {
  absl::MutexLock lock(&mutex_);
  auto it = entries_.find(name);
  if (it == entries_.end() || it->second.current == nullptr) return std::nullopt;
  const Entry& entry = it->second;
  return Current{entry.current, entry.request, entry.identity, entry.opened_at,
                 entry.weights_sha256};
}

absl::StatusOr<ContentDigest> AdapterRegistry::DigestOf(const Current& current, const Job& job,
                                                        AdapterReader& reader) const {
  if (reader.identity() == current.identity &&
      ProvesUnchanged(current.identity, current.opened_at)) {
    return ContentDigest{current.loaded->revision(), current.weights_sha256};
  }
  ProblemList problems;
  ContentDigest digest;
  ASSIGN_OR_RETURN(digest.revision, reader.Read(io_pool_, job.cancellation, nullptr, problems));
  return digest;
}

// What comes from a base is compared by the states of its files: to compute it anew costs a pass
// over the base.
bool AdapterRegistry::SameBase(const Current& current, const LoadRequest& request,
                               const AdapterReader& reader) {
  const std::string& checkpoint = request.source.base_checkpoint;
  if (checkpoint != current.request.source.base_checkpoint) return false;
  return checkpoint.empty() || reader.identity() == current.identity;
}

AdapterRegistry::Outcome AdapterRegistry::AlreadyLoaded(const Job& job) const {
  LoadResult result;
  result.already_loaded = true;
  absl::MutexLock lock(&mutex_);
  result.adapter = SnapshotOf(entries_.at(job.request.name));
  return result;
}

absl::Status AdapterRegistry::ClaimPublicId(Job& job, const AdapterManifest& manifest) {
  std::string id = PublicId(options_.public_id_template, job.request.name, manifest);
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckPublicId(id, job.request.name));
  public_ids_.try_emplace(id, job.request.name);
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

absl::StatusOr<std::shared_ptr<const LoadedAdapter>> AdapterRegistry::ReadAndPack(
    const Job& job, AdapterReader& reader, ProblemList& problems, Published& published) {
  ASSIGN_OR_RETURN(int64_t bytes, LoadedAdapter::BytesFor(kernels_, *reader.manifest()));
  ASSIGN_OR_RETURN(Reservation reservation, budget_->Reserve(bytes));
  AdapterBuilder builder(kernels_, budget_, reader.manifest(), std::move(reservation));
  ContentDigest digest;
  ASSIGN_OR_RETURN(digest.revision, reader.Read(io_pool_, job.cancellation, &builder, problems));
  RETURN_IF_ERROR(CheckDigest(job.request, reader, job.cancellation, digest));
  published.weights_sha256 = std::move(digest.weights_sha256);
  if (reader.base() != nullptr) {
    RETURN_IF_ERROR(builder.BindBase(*reader.base(), io_pool_, job.cancellation));
  }
  return builder.Build(std::move(digest.revision));
}

absl::Status AdapterRegistry::Publish(Job& job, Published& published) {
  std::shared_ptr<const LoadedAdapter> replaced;
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(job.cancellation.Check());
    Entry& entry = entries_.at(job.request.name);
    if (entry.current != nullptr) published.replaced_revision = entry.current->revision();
    if (published.loaded != nullptr) {
      std::erase_if(entry.draining, [](const Draining& old) { return old.loaded.expired(); });
      if (entry.current != nullptr) {
        entry.draining.push_back({entry.current, published.replaced_revision});
      }
      replaced = std::exchange(entry.current, published.loaded);
      entry.weights_sha256 = published.weights_sha256;
      entry.identity = published.identity;
      entry.warnings = published.warnings;
      entry.opened_at = published.opened_at;
      entry.load_time = absl::Now();
      entry.load_duration = entry.load_time - entry.opened_at;
    }
    if (entry.public_id != job.public_id) public_ids_.erase(entry.public_id);
    entry.public_id = job.public_id;
    entry.request = job.request;
    entry.etag = fmt::format("{:016x}", ++etag_counter_);
  }
  replaced.reset();  // may free memory; and what nobody else uses does not drain
  return absl::OkStatus();
}

void AdapterRegistry::Finish(const JobPtr& job, const Outcome& outcome) {
  WaitingList waiters;
  {
    absl::MutexLock lock(&mutex_);
    auto it = entries_.find(job->request.name);
    Entry& entry = it->second;
    entry.job = nullptr;
    if (!outcome.ok() && job->public_id != entry.public_id) public_ids_.erase(job->public_id);
    if (entry.current == nullptr) entries_.erase(it);
    waiters.swap(job->waiters);
    waiters.splice(waiters.end(), job->ready_waiters);
    for (auto& [ticket, waiter] : waiters) ticket->job = nullptr;
  }
  for (auto& [ticket, waiter] : waiters) waiter(outcome);
  absl::MutexLock lock(&mutex_);
  --running_jobs_;
}

// What the name holds now may stand against a load; `digest` is of the request's source.
bool AdapterRegistry::ValidateName(const LoadRequest& request, const ContentDigest& digest,
                                   AdapterReader& reader, ProblemList& problems) const {
  bool reads_nothing = false;
  if (const std::optional<Current> current = CurrentOf(request.name)) {
    auto comparison =
        Compare(request, digest.revision, *reader.manifest(), SameBase(*current, request, reader),
                current->request, *current->loaded);
    problems.Add(comparison.status());
    reads_nothing = comparison.ok() && *comparison != Comparison::kOtherContent;
  }
  const std::string public_id =
      PublicId(options_.public_id_template, request.name, *reader.manifest());
  absl::MutexLock lock(&mutex_);
  problems.Add(CheckPublicId(public_id, request.name));
  return reads_nothing;
}

ValidationResult AdapterRegistry::Validate(const LoadRequest& request,
                                           const Cancellation& cancellation) const {
  ValidationResult result;
  std::unique_ptr<AdapterReader> reader = opener_(request.source, result.problems);
  if (reader == nullptr) return result;
  ContentDigest digest;
  absl::StatusOr<std::string> revision =
      reader->Read(io_pool_, cancellation, nullptr, result.problems);
  if (!revision.ok()) {
    if (!result.problems.has_errors()) result.problems.Add(revision.status());
    return result;
  }
  digest.revision = *std::move(revision);
  result.problems.Add(CheckDigest(request, *reader, cancellation, digest));
  if (digest.weights_sha256.empty()) {
    digest.weights_sha256 = reader->WeightsDigest(cancellation).value_or("");
  }
  const bool reads_nothing = ValidateName(request, digest, *reader, result.problems);
  absl::StatusOr<int64_t> bytes = LoadedAdapter::BytesFor(kernels_, *reader->manifest());
  result.problems.Add(bytes.status());
  if (result.problems.has_errors()) return result;
  result.memory_bytes = *bytes;
  result.fits = reads_nothing || budget_->Fits(*bytes);
  AdapterSnapshot& snapshot = result.adapter.emplace();
  snapshot.name = request.name;
  snapshot.source = request.source.source;
  snapshot.pinned = request.pinned;
  snapshot.labels = request.labels;
  snapshot.manifest = reader->manifest();
  snapshot.warnings = result.problems.warnings();
  snapshot.digest = std::move(digest);
  snapshot.memory_bytes = *bytes;
  snapshot.public_id = PublicId(options_.public_id_template, request.name, *reader->manifest());
  return result;
}

}  // namespace adapterd
