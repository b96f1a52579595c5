// What DoRA multiplies the outputs of a base model in memory by.
#ifndef ADAPTERD_CORE_BASE_MODEL_DORA_GAINS_H_
#define ADAPTERD_CORE_BASE_MODEL_DORA_GAINS_H_

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/base_model/hosted_base.h"
#include "core/compute/dora_norms.h"
#include "core/compute/stored_weight.h"

namespace adapterd {

using Gains = std::shared_ptr<const std::vector<float>>;  // [out_features], magnitude over norm

// One adapter's module upon one module of a base model, as that stood at one instant.
struct DoraPlace {
  std::string revision;     // of the adapter
  size_t module = 0;        // in the adapter
  int64_t pair = 0;         // of the module: an expert
  ModuleSnapshot snapshot;  // of the base
};

// The gains from the norms of the weight with the delta of `term` upon it. Reads the whole weight,
// in blocks. NON_FINITE_WEIGHTS for a row that has no usable norm; CANCELLED. Threads: as
// DoraNorms.
absl::StatusOr<Gains> ComputeDoraGains(const Kernels& kernels, ThreadPool& pool,
                                       const StoredWeight& weight, const MergeTerm& term,
                                       std::span<const float> magnitude,
                                       const Cancellation& cancellation);

// Gains that were computed, those used last. Knows a place by its objects, not by their addresses:
// another base of the same name, or another merge, is another place. Keeps no base alive.
//
// Threads: any. Cost: a short lock.
class DoraGainCache {
 public:
  // Enough for all modules of ten adapters of a large model; beside the memory budget.
  static constexpr int64_t kMaxBytes = 64 << 20;

  explicit DoraGainCache(int64_t max_bytes = kMaxBytes) : max_bytes_(max_bytes) {}

  // Null: not here.
  Gains Find(const DoraPlace& place) ABSL_LOCKS_EXCLUDED(mutex_);
  void Insert(const DoraPlace& place, Gains gains) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Key {
    std::string revision;
    size_t module = 0;
    int64_t pair = 0;
    const void* base_module = nullptr;
    const void* merged = nullptr;

    bool operator==(const Key&) const = default;
    template <typename H>
    friend H AbslHashValue(H h, const Key& key) {
      return H::combine(std::move(h), key.revision, key.module, key.pair, key.base_module,
                        key.merged);
    }
  };
  struct Entry {
    Key key;
    std::weak_ptr<const HostedBase> base;
    std::weak_ptr<const MergedOverlay> merged;
    Gains gains;
  };
  using Entries = std::list<Entry>;  // the one used last in front

  static Key KeyOf(const DoraPlace& place);
  void Erase(Entries::iterator entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t max_bytes_;
  absl::Mutex mutex_;
  Entries entries_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Key, Entries::iterator> index_ ABSL_GUARDED_BY(mutex_);
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_DORA_GAINS_H_
