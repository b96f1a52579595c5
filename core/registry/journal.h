// What has to survive a restart, and the one who writes it down.
#ifndef ADAPTERD_CORE_REGISTRY_JOURNAL_H_
#define ADAPTERD_CORE_REGISTRY_JOURNAL_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/adapter/adapter_description.h"
#include "core/adapter/adapter_reader.h"

namespace adapterd {

using Labels = std::map<std::string, std::string>;
using Aliases = std::map<std::string, std::string>;  // alias -> revision

// One revision of an adapter: where its content is read from, and how to know that it is the same.
struct RevisionRecord {
  std::string revision;
  // Of what the revision does not cover: how the tensors are understood, and what was computed from
  // the base model.
  std::string derived_digest;
  std::string weights_sha256;  // of the file; empty: not known
  SourceSpec source;
  AdapterDescription description;
  std::vector<std::string> warnings;
  int64_t memory_bytes = 0;  // what loading it reserves
  absl::Time load_time;      // of the first load
  absl::Duration load_duration;

  bool operator==(const RevisionRecord&) const = default;
};

// An adapter as it was acknowledged.
struct AdapterRecord {
  std::string name;
  std::string public_id;
  std::string etag;
  bool pinned = false;
  bool enabled = true;
  Labels labels;
  Aliases aliases;
  RevisionRecord current;
  std::vector<RevisionRecord> kept;  // newest first

  bool operator==(const AdapterRecord&) const = default;
};

// Called by the registry before it acknowledges a change and before others see it; when it fails,
// nothing changes. Any thread; calls for one name never overlap.
class Journal {
 public:
  virtual ~Journal() = default;

  // On return the record is on disk, in the place of one of the same name. STORAGE_FULL,
  // SOURCE_UNAVAILABLE.
  virtual absl::Status Put(const AdapterRecord& record) = 0;

  // OK also when there was none.
  virtual absl::Status Erase(const std::string& name) = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_JOURNAL_H_
