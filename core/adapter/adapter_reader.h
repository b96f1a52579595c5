// One source, opened and understood, whose weights can be read or digested.
#ifndef ADAPTERD_CORE_ADAPTER_ADAPTER_READER_H_
#define ADAPTERD_CORE_ADAPTER_ADAPTER_READER_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/adapter/adapter.h"
#include "core/adapter/base_model_binding.h"
#include "core/adapter/base_tensors.h"
#include "core/adapter/problems.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/formats/source_roots.h"

namespace adapterd {

// What decides how a source is read.
struct SourceSpec {
  std::string source;                // below an adapter root
  std::string base_model;            // must equal the config's when both are set
  std::string base_checkpoint = {};  // below a model root; empty: none
  // Key of a folder in the content store, for what was uploaded; then `source` is empty.
  std::string stored = {};
  // True: `source` is below the folder of --watch-adapters instead, which no client can name.
  bool watched = false;
  // As the client gives them, for formats whose rows depend on them.
  std::optional<HeadCounts> head_counts = std::nullopt;
  std::string hosted_base = {};  // name of a base model in memory; empty: none

  // Whether it is held against a base model's tensors.
  bool has_base() const { return !base_checkpoint.empty() || !hosted_base.empty(); }

  bool operator==(const SourceSpec&) const = default;
};

// Which bytes were read, without reading them again: names and states of the files in use.
struct SourceIdentity {
  std::vector<std::pair<std::string, FileIdentity>> files;

  bool operator==(const SourceIdentity&) const = default;
};

// Takes the modules of an adapter while it is read.
class ModuleSink {
 public:
  virtual ~ModuleSink() = default;

  // Once for each module of the manifest, in no order, from several threads at once. Moves out what
  // it keeps; the memory of what it leaves is used again.
  virtual absl::Status Take(size_t module, ModuleTensors& tensors) = 0;
};

// A base model, and where in it the adapter's modules lie.
struct BoundBase {
  std::shared_ptr<const BaseTensors> model;
  std::vector<BaseBinding> bindings;  // one a module
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
  // The base model that the adapter was checked against; null without one.
  virtual const BoundBase* base() const = 0;

  // Reads the weights once, on the calling thread and idle ones of `pool`, and gives the revision.
  // Every module goes to `sink`; without one only what is needed to judge and digest is held.
  // NON_FINITE_WEIGHTS for NaN or infinite elements, SOURCE_CHANGED when a file moved on meanwhile,
  // CANCELLED once `cancellation` is set, errors of the sink. Adds what only the weights show to
  // `problems`; fails with the first error of that list.
  virtual absl::StatusOr<std::string> Read(ThreadPool& pool, const Cancellation& cancellation,
                                           ModuleSink* sink, ProblemList& problems) = 0;

  // SHA-256 of the weights file, one byte after the other: a pass of its own. SOURCE_CHANGED,
  // CANCELLED.
  virtual absl::StatusOr<std::string> WeightsDigest(const Cancellation& cancellation) = 0;
};

// Opens `spec.source` or `spec.stored` in whatever format it is. Every problem is added to
// `problems`. Null when there is nothing to read; with an error among the problems the reader has
// only what is sound, for whoever wants to know all that is wrong.
using AdapterOpener =
    std::function<std::unique_ptr<AdapterReader>(const SourceSpec& spec, ProblemList& problems)>;

// The opener over real files; `stored` holds what was uploaded, by its key, and may be null, and so
// may `hosted`. Copies share the roots; any thread.
AdapterOpener OpenFromRoots(std::shared_ptr<const SourceRoots> adapters,
                            std::shared_ptr<const SourceRoots> models,
                            std::shared_ptr<const SourceRoots> stored = nullptr,
                            HostedBaseFinder hosted = nullptr);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_ADAPTER_READER_H_
