// What callers hand to the registry and get back from it.
#ifndef ADAPTERD_CORE_REGISTRY_REGISTRY_TYPES_H_
#define ADAPTERD_CORE_REGISTRY_REGISTRY_TYPES_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/adapter/adapter_reader.h"
#include "core/registry/loaded_adapter.h"

namespace adapterd {

// LOADING -> READY, or gone when the load fails. READY stays READY during a replace. EVICTED and
// FAILED belong to adapters that were READY once and have to be read again.
enum class AdapterState { kLoading, kReady, kEvicted, kFailed };

using Labels = std::map<std::string, std::string>;

struct LoadRequest {
  std::string name;
  SourceSpec source;
  std::string expected_digest;  // revision or SHA-256 of the weights file; empty: any
  bool pinned = false;
  Labels labels;
  bool replace = false;

  bool operator==(const LoadRequest&) const = default;
};

// Counters of one adapter name; shared by its revisions and by running requests.
struct AdapterUsage {
  std::atomic<int64_t> use_count{0};
  std::atomic<int64_t> in_flight{0};
  std::atomic<int64_t> last_use_unix_ns{0};  // 0: never
};

// What an adapter is at one instant. Holds no weights.
struct AdapterSnapshot {
  std::string name;
  std::string public_id;
  AdapterState state = AdapterState::kLoading;
  std::string source;
  bool pinned = false;
  Labels labels;
  std::shared_ptr<const AdapterManifest> manifest;  // null while the first load runs
  ContentDigest digest;
  std::vector<std::string> warnings;
  int64_t memory_bytes = 0;
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
  std::string replaced_revision;  // empty: none was
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
  bool fits = false;
};

struct AdapterRef {
  std::string name;
  std::string revision;  // the loaded one must be it when set
};

// Keeps one revision alive and counts one use of it while it exists. Movable.
class AdapterHandle {
 public:
  AdapterHandle(std::shared_ptr<const LoadedAdapter> adapter, std::shared_ptr<AdapterUsage> usage);
  ~AdapterHandle();
  AdapterHandle(AdapterHandle&&) noexcept = default;
  AdapterHandle& operator=(AdapterHandle&& other) noexcept;  // lets go of what it held

  const LoadedAdapter& operator*() const { return *adapter_; }
  const LoadedAdapter* operator->() const { return adapter_.get(); }

 private:
  std::shared_ptr<const LoadedAdapter> adapter_;
  std::shared_ptr<AdapterUsage> usage_;  // null once moved from
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_REGISTRY_TYPES_H_
