// Everything that a load checks, without loading.
#include <algorithm>

#include "core/base/status_macros.h"
#include "core/registry/adapter_registry.h"
#include "core/registry/load_checks.h"
#include "core/registry/registry_state.h"

namespace adapterd {

// What the name holds now may stand against a load; `digest` is of the request's source. True when
// the load would read nothing.
bool AdapterRegistry::ValidateName(const LoadRequest& request, const ContentDigest& digest,
                                   AdapterReader& reader, ProblemList& problems) const {
  bool reads_nothing = false;
  if (const LoadedState current = CurrentOf(request.name); current.info != nullptr) {
    const auto comparison = Compare(request, digest.revision, *reader.manifest(), current);
    problems.Add(comparison.status());
    reads_nothing = comparison.ok() && *comparison != Comparison::kOtherContent &&
                    current.is_resident && HasSameBase(request, reader, current);
  }
  const std::string public_id =
      PublicId(options_.public_id_template, request.name, reader.manifest()->base_model);
  absl::MutexLock lock(&mutex_);
  problems.Add(CheckPublicId(public_id, request.name));
  return reads_nothing;
}

// Whether a load would get its memory now, and who would go for it.
bool AdapterRegistry::Fits(const std::string& name, int64_t bytes,
                           std::vector<std::string>& would_evict) const {
  absl::MutexLock lock(&mutex_);
  const int64_t missing = bytes - (budget_->limit() - budget_->used());
  if (missing <= 0) return true;
  const auto it = entries_.find(name);
  const std::vector<Content*> plan =
      PlanEviction(missing, it == entries_.end() ? nullptr : &it->second);
  for (const Content* content : plan) {
    for (const Record* record : content->records) {
      if (record->IsCurrent()) would_evict.push_back(record->entry->name);
    }
  }
  return !plan.empty();
}

absl::Status AdapterRegistry::CheckRoomFor(const LoadRequest& request,
                                           const AdapterManifest& manifest) const {
  ASSIGN_OR_RETURN(const int64_t bytes, BytesFor(manifest));
  if (!request.replace && CurrentOf(request.name).info != nullptr) return absl::OkStatus();
  std::vector<std::string> would_evict;
  if (Fits(request.name, bytes, would_evict)) return absl::OkStatus();
  return budget_->Exceeded(bytes);
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
  result.fits = reads_nothing || Fits(request.name, *bytes, result.would_evict);
  AdapterSnapshot& snapshot = result.adapter.emplace();
  snapshot.name = request.name;
  snapshot.source = request.source.source;
  snapshot.pinned = request.pinned;
  snapshot.labels = request.labels;
  snapshot.manifest = reader->manifest();
  snapshot.description =
      std::make_shared<const AdapterDescription>(DescriptionOf(*reader->manifest()));
  snapshot.warnings = result.problems.warnings();
  snapshot.digest = std::move(digest);
  snapshot.memory_bytes = *bytes;
  snapshot.public_id =
      PublicId(options_.public_id_template, request.name, reader->manifest()->base_model);
  return result;
}

}  // namespace adapterd
