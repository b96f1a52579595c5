// The registry's own records; for this room only. Every field is guarded by the registry's mutex_
// unless it says otherwise.
#ifndef ADAPTERD_CORE_REGISTRY_REGISTRY_STATE_H_
#define ADAPTERD_CORE_REGISTRY_REGISTRY_STATE_H_

#include <fmt/format.h>

#include <list>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/registry/adapter_registry.h"

namespace adapterd {

inline constexpr size_t kMaxAliases = 64;  // of one adapter

// One revision of one name, in memory or not.
struct AdapterRegistry::Record {
  std::shared_ptr<const RevisionRecord> info;  // replaced when more is known
  SourceIdentity identity;     // of what it was read from; no files when this process never read it
  absl::Time opened_at;        // before the first byte of it was read
  bool reloadable = true;      // its source can be read again
  Entry* entry = nullptr;      // that it belongs to; null once it is retired
  LeasePtr lease;              // null: evicted
  Content* content = nullptr;  // of the lease
  int64_t bytes = 0;           // what reading it takes, as far as is known
  absl::Status error;          // not OK: FAILED
  std::shared_ptr<Restoration> restoration;

  bool IsCurrent() const;
};

// Weights in memory, and the records (of any name) whose content they are.
struct AdapterRegistry::Content {
  std::string key;
  std::vector<Record*> records;
  std::list<Content*>::iterator place;  // in by_use_
  absl::Time last_use;

  const LoadedAdapter& loaded() const { return *records.front()->lease->loaded(); }
};

// All of an adapter that changes, and changes as a whole.
struct AdapterRegistry::State {
  std::string public_id;
  std::string etag;
  bool pinned = false;
  bool enabled = true;
  Labels labels;
  Aliases aliases;
  RecordPtr current;            // null while the first load runs, and after it failed
  std::vector<RecordPtr> kept;  // newest first

  const RecordPtr* Find(const std::string& revision) const;
};

// A name.
struct AdapterRegistry::Entry {
  // A replaced revision that may still be used. Listings only ask whether it is gone: whoever took
  // a share could be the last to let go, and would free it under the lock.
  struct Draining {
    std::weak_ptr<const AdapterLease> lease;
    std::string revision;
  };

  std::string name;
  AdapterOwner owner = AdapterOwner::kClients;
  SourceSpec source;  // of the last load that was tried
  State state;
  absl::Status failure;  // of the last load, when a folder owns it
  std::shared_ptr<AdapterUsage> usage = std::make_shared<AdapterUsage>();
  JobPtr job;  // what changes it now
  std::vector<Draining> draining;
};

inline bool AdapterRegistry::Record::IsCurrent() const {
  return entry != nullptr && entry->state.current.get() == this;
}

inline const AdapterRegistry::RecordPtr* AdapterRegistry::State::Find(
    const std::string& revision) const {
  if (current != nullptr && current->info->revision == revision) return &current;
  for (const RecordPtr& record : kept) {
    if (record->info->revision == revision) return &record;
  }
  return nullptr;
}

// A change that is queued or running.
struct AdapterRegistry::Job {
  std::optional<LoadRequest> load;  // constant; of a load
  Cancellation cancellation;        // synchronises itself
  std::string public_id;            // claimed for this load; used by the job's thread only
  std::string claimed_tenant;       // whose quota this load counts against
  int64_t claimed_bytes = 0;        // of that quota
  WaitingList waiters;              // for the end
  WaitingList ready_waiters;        // for the adapter to serve, or for the end
};

// One caller's place in a queue of waiters.
class AdapterRegistry::Ticket {
 public:
  JobPtr job;                  // null while it waits for none
  AcquisitionPtr acquisition;  // of an Acquire, until that is answered
  bool cancelled = false;
};

// An evicted record that is read again, for as long as somebody waits for it.
struct AdapterRegistry::Restoration {
  Cancellation cancellation;  // synchronises itself
  std::vector<AcquisitionPtr> waiters;
  std::vector<absl::AnyInvocable<void()>> ended;  // for the end, when its memory is free
  absl::Time start = absl::Now();
};

// Somebody who wants handles. While it waits for one record it holds nothing. Several records, of
// which some are evicted, are gathered by one acquisition at a time, the first in line: whoever
// gathers holds what it has, and two that did so could wait for each other's memory forever.
struct AdapterRegistry::Acquisition {
  std::vector<AdapterRef> refs;           // constant
  Disabled disabled = Disabled::kRefuse;  // constant
  Done<std::vector<AdapterHandle>> done;  // empty once it has run
  TicketPtr ticket;                       // constant
  std::set<RecordPtr> wanted;             // what its refs meant when it last looked
  std::set<RecordPtr> missing;            // evicted ones that it waits for
  std::vector<LeasePtr> gathered;         // keeps what it has from eviction
  bool in_line = false;
  std::optional<absl::StatusOr<std::vector<AdapterHandle>>> answer;  // set once
};

// What one ref means.
struct AdapterRegistry::Use {
  RecordPtr record;  // null: disabled, and to be skipped
  std::shared_ptr<AdapterUsage> usage;
};

// What a load or a restoration made.
struct AdapterRegistry::Loaded {
  std::shared_ptr<const LoadedAdapter> adapter;
  std::shared_ptr<const AdapterManifest> manifest;
  ContentDigest digest;
  LeasePtr held;  // of another name, when that brought `adapter`: it stays in memory meanwhile
};

inline absl::Status NotFound(const std::string& name) {
  return Error(Reason::kAdapterNotFound, fmt::format("adapter \"{}\" is not loaded", name))
      .With("adapter", name);
}

inline absl::Status RevisionMismatch(const std::string& name, const std::string& expected,
                                     const std::string& actual) {
  return Error(Reason::kRevisionMismatch,
               fmt::format("adapter \"{}\" is at revision {}, and {} is not kept", name, actual,
                           expected))
      .With("adapter", name)
      .With("expected", expected)
      .With("actual", actual);
}

inline absl::Status EtagMismatch(const std::string& name, const std::string& expected,
                                 const std::string& actual) {
  return Error(Reason::kEtagMismatch,
               fmt::format("adapter \"{}\" has etag {}, not {}: it was changed meanwhile", name,
                           actual, expected))
      .With("adapter", name)
      .With("expected", expected)
      .With("actual", actual);
}

inline absl::Status CannotServe(const std::string& name, const absl::Status& error) {
  const std::string why(error.message());
  return Error(Reason::kAdapterFailed, fmt::format("adapter \"{}\" cannot serve: {}", name, why))
      .With("adapter", name);
}

// Records with equal keys compute the same numbers.
inline std::string KeyOf(const RevisionRecord& info) { return info.revision + info.derived_digest; }

inline absl::Status GaveUp() { return absl::CancelledError("the caller gave up waiting"); }

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_REGISTRY_STATE_H_
