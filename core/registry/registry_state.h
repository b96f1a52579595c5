// The registry's own records; for this room only. Every field is guarded by the registry's mutex_
// unless it says otherwise.
#ifndef ADAPTERD_CORE_REGISTRY_REGISTRY_STATE_H_
#define ADAPTERD_CORE_REGISTRY_REGISTRY_STATE_H_

#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/registry/adapter_registry.h"

namespace adapterd {

// A load that is queued or running.
struct AdapterRegistry::Job {
  explicit Job(LoadRequest load_request) : request(std::move(load_request)) {}

  const LoadRequest request;  // constant
  Cancellation cancellation;  // synchronises itself
  std::string public_id;      // claimed for this load; used by the job's thread only
  WaitingList waiters;        // for the end
  WaitingList ready_waiters;  // for the adapter to serve, or for the end
};

// One caller's place in a queue of waiters.
class AdapterRegistry::Ticket {
 public:
  JobPtr job;  // null while it waits for nothing
  bool cancelled = false;
};

// A revision that was replaced and may still be used. Listings only ask whether it is gone: whoever
// took a share could be the last to let go, and would free it under the lock.
struct AdapterRegistry::Draining {
  std::weak_ptr<const LoadedAdapter> loaded;
  std::string revision;
};

// A name. Without `current` it is LOADING; with it READY, also while `job` replaces it.
struct AdapterRegistry::Entry {
  LoadRequest request;  // of `current`, or of the first load
  std::string public_id;
  SourceIdentity identity;  // of what `current` was read from
  absl::Time opened_at;     // before the first byte of it was read
  absl::Time load_time;     // when it was published
  absl::Duration load_duration;
  std::string etag;
  std::string weights_sha256;         // of `current`'s file; empty: not known (yet)
  std::vector<std::string> warnings;  // of `current`
  std::shared_ptr<const LoadedAdapter> current;
  std::shared_ptr<AdapterUsage> usage = std::make_shared<AdapterUsage>();
  JobPtr job;
  std::vector<Draining> draining;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_REGISTRY_STATE_H_
