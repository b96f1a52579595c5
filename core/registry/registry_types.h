// What callers hand to the registry and get back from it.
#ifndef ADAPTERD_CORE_REGISTRY_REGISTRY_TYPES_H_
#define ADAPTERD_CORE_REGISTRY_REGISTRY_TYPES_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/adapter/adapter_description.h"
#include "core/adapter/adapter_reader.h"
#include "core/registry/journal.h"

namespace adapterd {

// LOADING -> READY, or gone when the load fails. READY stays READY during a replace. EVICTED comes
// back when it is used; FAILED cannot, until it is loaded anew.
enum class AdapterState { kLoading, kReady, kEvicted, kFailed };

// Who decides that an adapter is there. What a folder brought is not written to the journal, and a
// load of it that fails leaves a FAILED adapter instead of nothing.
enum class AdapterOwner { kClients, kFolder };

struct LoadRequest {
  std::string name;
  SourceSpec source;
  std::string expected_digest;  // revision or SHA-256 of the weights file; empty: any
  bool pinned = false;
  Labels labels;
  bool replace = false;
  // True: `pinned` and `labels` are for a new name alone; those of a name in use stay, whatever
  // they are, also when its content is replaced.
  bool keep_options = false;
  // What the name must have when the load begins, else REVISION_MISMATCH or ETAG_MISMATCH: for
  // content that was made of it. Empty: anything.
  std::string successor_of;  // revision
  std::string etag;
  bool reloadable = true;  // false: the source is gone after the load, so never evict it
  AdapterOwner owner = AdapterOwner::kClients;

  bool operator==(const LoadRequest&) const = default;
};

// What an adapter is at one instant. Holds no weights.
struct AdapterSnapshot {
  std::string name;
  std::string public_id;
  AdapterState state = AdapterState::kLoading;
  std::string source;
  AdapterOwner owner = AdapterOwner::kClients;
  SourceSpec source_spec;  // all of where the current revision came from
  bool pinned = false;
  bool enabled = true;
  Labels labels;
  Aliases aliases;
  std::vector<std::string> kept_revisions;  // newest first
  // Null while the first load runs, and of a load that failed.
  std::shared_ptr<const AdapterDescription> description;
  std::shared_ptr<const AdapterManifest> manifest;  // null unless READY
  ContentDigest digest;
  std::vector<std::string> warnings;
  int64_t memory_bytes = 0;  // reserved now; all revisions that are not gone
  int64_t load_bytes = 0;    // what loading the current revision reserves
  int64_t use_count = 0;
  int64_t in_flight = 0;
  std::optional<absl::Time> load_time;
  std::optional<absl::Time> last_use_time;
  absl::Duration load_duration;
  std::string etag;
  absl::Status error;                           // of FAILED
  std::vector<std::string> draining_revisions;  // replaced ones that requests still use
};

struct LoadResult {
  AdapterSnapshot adapter;
  bool already_loaded = false;
  std::string replaced_revision;     // empty: none was
  std::vector<std::string> evicted;  // adapters that made room, in the order they went
};

// What is not set stays.
struct UpdateRequest {
  std::string name;
  std::optional<bool> enabled;
  std::optional<bool> pinned;
  std::optional<Labels> labels;
  std::string etag;  // must be the adapter's when set
};

struct UnloadRequest {
  std::string name;
  std::string revision;  // must be the current one when set
  bool force = false;    // pinned adapters too
  bool wait = true;      // for the memory to be free; otherwise only for the name to be gone
};

struct UnloadResult {
  int64_t freed_bytes = 0;  // so far
  bool freed = false;       // all of it
};

// What ValidateAdapter tells. `adapter` has no value when there are errors.
struct ValidationResult {
  ProblemList problems;
  std::optional<AdapterSnapshot> adapter;
  int64_t memory_bytes = 0;
  bool fits = false;  // after evictions if need be
  std::vector<std::string> would_evict;
};

// Which adapters a page of a listing has; all conditions that are set must hold.
struct ListQuery {
  std::string after;  // names behind this one, bytewise
  size_t limit = 100;
  std::string name_prefix;
  std::string base_model;
  std::optional<AdapterState> state;
  Labels labels;
};

struct ListPage {
  int64_t sequence = 0;                   // of the last event before the listing began
  std::vector<AdapterSnapshot> adapters;  // by name, bytewise
  bool more = false;                      // matches behind the last one
  int64_t total = 0;                      // matches on all pages
};

// Of all adapters.
struct RegistryTotals {
  int64_t adapters = 0;
  int64_t resident = 0;  // in memory
  int64_t memory_bytes = 0;
  int64_t budget_bytes = 0;
  int64_t parameters = 0;
  bool thrashing = false;  // ThrashGuard
};

struct AdapterRef {
  std::string name;
  std::string revision;    // current or kept; empty: the alias's, or the current one
  std::string alias = {};  // empty: none
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_REGISTRY_TYPES_H_
