// One source, opened and understood, whose weights can be read or digested.
#ifndef ADAPTERD_CORE_ADAPTER_ADAPTER_READER_H_
#define ADAPTERD_CORE_ADAPTER_ADAPTER_READER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/adapter/adapter.h"
#include "core/adapter/problems.h"
#include "core/base/cancellation.h"
#include "core/formats/source_roots.h"

namespace adapterd {

// What decides how a source is read.
struct SourceSpec {
  std::string source;      // below an adapter root
  std::string base_model;  // must equal the config's when both are set

  bool operator==(const SourceSpec&) const = default;
};

// Which bytes were read, without reading them again: names and states of the files in use.
struct SourceIdentity {
  std::vector<std::pair<std::string, FileIdentity>> files;

  bool operator==(const SourceIdentity&) const = default;
};

// Opening has read config and headers and checked all that they tell; no weight was read yet, and
// nothing large is allocated. Used by one thread. An interface, so that tests of the registry need
// no files.
class AdapterReader {
 public:
  virtual ~AdapterReader() = default;

  // Shared, because listings outlive the weights.
  virtual const std::shared_ptr<const AdapterManifest>& manifest() const = 0;
  virtual const SourceIdentity& identity() const = 0;

  // Reads the weights once, digesting on the way. NON_FINITE_WEIGHTS for NaN or infinite elements,
  // SOURCE_CHANGED when a file moved on meanwhile, CANCELLED once `cancellation` is set (asked
  // between tensors). Allocates manifest()->factor_bytes() and a bounded buffer: reserve first.
  // Adds problems that only the weights show; fails with the first error of the list.
  virtual absl::StatusOr<std::shared_ptr<const Adapter>> Read(const Cancellation& cancellation,
                                                              ProblemList& problems) = 0;

  // The same checks, problems and digest as Read, in bounded memory: keeps no weights.
  virtual absl::StatusOr<ContentDigest> Digest(const Cancellation& cancellation,
                                               ProblemList& problems) = 0;
};

// Opens `spec.source` in whatever format it is. Every problem is added to `problems`; the reader is
// null when there is an error among them.
using AdapterOpener =
    std::function<std::unique_ptr<AdapterReader>(const SourceSpec& spec, ProblemList& problems)>;

// The opener over real files. Copies share `roots`; any thread.
AdapterOpener OpenFromRoots(std::shared_ptr<const SourceRoots> roots);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_ADAPTER_READER_H_
