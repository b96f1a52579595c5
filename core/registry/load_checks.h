// What a load is held against: the digest it expects, and what its name has already. For this room
// only.
#ifndef ADAPTERD_CORE_REGISTRY_LOAD_CHECKS_H_
#define ADAPTERD_CORE_REGISTRY_LOAD_CHECKS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/base/cancellation.h"
#include "core/registry/registry_types.h"

namespace adapterd {

// An adapter when a load of its name begins.
struct LoadedState {
  std::shared_ptr<const RevisionRecord> info;  // null: there is none
  SourceIdentity identity;  // of what it was read from; empty: not by this process
  absl::Time opened_at;     // before it was read
  bool is_resident = false;
  std::string etag;
  AdapterOwner owner = AdapterOwner::kClients;
  bool pinned = false;
  Labels labels;
};

// Whether the files that were read at `opened_at` are the same bytes whenever they show the same
// identity later.
bool ProvesUnchanged(const SourceIdentity& identity, absl::Time opened_at);

// DIGEST_MISMATCH unless the request expects nothing, the revision, or the digest of the weights
// file, which takes another pass and is then added to `digest`.
absl::Status CheckDigest(const LoadRequest& request, AdapterReader& reader,
                         const Cancellation& cancellation, ContentDigest& digest);

enum class Comparison { kSame, kOtherOptions, kOtherContent };

// LoadRequest::successor_of and etag: ADAPTER_NOT_FOUND, REVISION_MISMATCH, ETAG_MISMATCH.
absl::Status CheckSuccession(const LoadRequest& request, const LoadedState& current);

// What a request for a name in use amounts to, as far as the revision and the manifest of its
// source tell; ADAPTER_EXISTS when it differs and may not replace. REQUIRES: current.info.
absl::StatusOr<Comparison> Compare(const LoadRequest& request, const std::string& revision,
                                   const AdapterManifest& manifest, const LoadedState& current);

// Whether what was computed from the base model is known to be what it would be now: computing it
// anew costs a pass over the base, so the states of its files decide. REQUIRES: current.info.
bool HasSameBase(const LoadRequest& request, const AdapterReader& reader,
                 const LoadedState& current);

// ADAPTER_EXISTS. `revision` is of the request's source.
absl::Status IsThereWithOther(const std::string& what, const LoadRequest& request,
                              const std::string& revision, const LoadedState& current);

// The template with {name} and {base} filled in.
std::string PublicId(std::string id_template, const std::string& name,
                     const std::string& base_model);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_LOAD_CHECKS_H_
