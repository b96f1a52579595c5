// An adapter in memory: packed factors, what goes with them, and the reservation that pays for it.
#ifndef ADAPTERD_CORE_REGISTRY_LOADED_ADAPTER_H_
#define ADAPTERD_CORE_REGISTRY_LOADED_ADAPTER_H_

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/adapter/adapter.h"
#include "core/compute/packed_pair.h"
#include "core/registry/memory_budget.h"

namespace adapterd {

// What DoRA needs of the base model, for one module.
struct DoraVectors {
  std::vector<float> gain;       // [out_features], magnitude over norm
  std::vector<float> base_bias;  // [out_features]; empty: the layer has none
};

// What a module has besides its factors. Tensors are as stored; empty where there is none.
struct ModuleExtras {
  Tensor lora_bias;  // [out_features]
  Tensor magnitude;  // [out_features]
  Tensor weight;     // ModuleInfo::weight_shape
  Tensor bias;       // [out_features]
  // For the arithmetic, in F32.
  std::vector<float> lora_bias_f32;
  std::vector<float> magnitude_f32;
  // Known when the adapter was loaded with its base model.
  std::optional<DoraVectors> dora;
  // What the base model's embedding module multiplies its output by; nullopt: only the base tells.
  std::optional<double> embedding_scale;
};

// The factors of one pair, as stored (or folded).
struct PairFactors {
  Tensor lora_a;  // [rank, columns]
  Tensor lora_b;  // [out_features, rank]
};

// Owns weights and reservation with one lifetime: the last user frees both, so the budget and the
// memory always agree. Factors exist in packed form alone, from which the stored ones can be had
// again. Immutable but for packed forms that are added on first use. Made by AdapterBuilder.
//
// Threads: all methods from any thread. The destructor runs on whichever thread lets go last.
class LoadedAdapter {
 public:
  // What loading needs reserved: one packed form of every pair, and all extras.
  static absl::StatusOr<int64_t> BytesFor(const Kernels& kernels, const AdapterManifest& manifest);
  ~LoadedAdapter();

  const AdapterManifest& manifest() const { return *manifest_; }
  // For listings, which outlive the weights.
  const std::shared_ptr<const AdapterManifest>& shared_manifest() const { return manifest_; }
  const std::string& revision() const { return revision_; }
  const std::string& derived_digest() const { return derived_digest_; }  // RevisionRecord's
  const ModuleExtras& extras(size_t module) const { return extras_[module]; }

  // A pair of the module for inputs of `input`'s dtype (token ids of embeddings: any). The first
  // call for a form that is not there yet reserves and packs it, and fails with
  // MEMORY_BUDGET_EXCEEDED when it does not fit. The result lives as long as this. REQUIRES:
  // 0 <= pair < pairs() of the module.
  absl::StatusOr<const PackedPair*> Pair(size_t module, int64_t pair, DType input) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  // A copy of a pair's factors, in their own dtypes. Cost: as packing it.
  PairFactors Factors(size_t module, int64_t pair) const;

  // All that is reserved for it now.
  int64_t memory_bytes() const { return memory_bytes_.load(std::memory_order_relaxed); }

  // Drops one share. Returns the bytes that this gave back: 0 unless it was the last.
  static int64_t LetGo(std::shared_ptr<const LoadedAdapter> share);

 private:
  friend class AdapterBuilder;

  static constexpr size_t kForms = 2;  // one for each ComputeType

  // `ready` is set once the form is in `owned`, so that readers need no lock.
  struct Slot {
    std::array<std::atomic<const PackedPair*>, kForms> ready{};
    std::array<std::unique_ptr<const PackedPair>, kForms> owned;  // guarded by the adapter's mutex_
  };

  LoadedAdapter(const Kernels& kernels, std::shared_ptr<MemoryBudget> budget,
                std::shared_ptr<const AdapterManifest> manifest, Reservation reservation);
  Slot& SlotOf(size_t module, int64_t pair) const {
    return slots_[first_slot_[module] + static_cast<size_t>(pair)];
  }
  static void Publish(Slot& slot, std::unique_ptr<const PackedPair> packed);

  const Kernels& kernels_;
  const std::shared_ptr<MemoryBudget> budget_;
  const std::shared_ptr<const AdapterManifest> manifest_;
  // Written by the builder, constant from then on until the destructor.
  std::string revision_;
  std::string derived_digest_;
  std::vector<ModuleExtras> extras_;  // one a module

  mutable std::atomic<int64_t> memory_bytes_;
  std::vector<size_t> first_slot_;   // of each module
  mutable std::vector<Slot> slots_;  // one a pair; its size is constant

  mutable absl::Mutex mutex_;
  mutable std::vector<Reservation> reservations_ ABSL_GUARDED_BY(mutex_);
};

// Inputs most often come in the dtype that the adapter was trained in, which is A's.
ComputeType FirstForm(const Kernels& kernels, const ModuleInfo& module);

// Of one pair.
PairShape PairShapeOf(const ModuleInfo& module);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_LOADED_ADAPTER_H_
