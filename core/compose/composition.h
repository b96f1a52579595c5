// One adapter made of several: PEFT's add_weighted_adapter on adapters that are loaded.
#ifndef ADAPTERD_CORE_COMPOSE_COMPOSITION_H_
#define ADAPTERD_CORE_COMPOSE_COMPOSITION_H_

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/adapter/adapter.h"
#include "core/adapter/tensor_role.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/compose/compose_spec.h"
#include "core/compose/mix.h"
#include "core/compute/kernels.h"

namespace adapterd {

// More than anybody mixes; each costs a copy of one module's factors.
inline constexpr size_t kMaxComposeInputs = 64;
// An SVD of pruned deltas holds one module's delta as a whole; larger ones are refused.
inline constexpr int64_t kMaxDeltaBytes = int64_t{1} << 30;

// Planned at once, computed module by module as its tensors are taken. The result is plain LoRA of
// scale 1 in F32 (alpha is the rank), whatever the inputs are. One thread at a time; the inputs'
// functions, `kernels` and `pool` are used until the last tensor was taken.
//
// Cost: docs/compose.md. Holds the factors and the result of as many modules as the pool has
// threads; with SVD of pruned deltas of one, and its delta.
class Composition {
 public:
  // Checks all that can be known beforehand. INVALID_FIELD: no inputs or too many, density, rank or
  // clamp out of range, ranks that the method needs equal, no module in common, a delta that is too
  // large. SHAPE_MISMATCH: a module has other sizes in another adapter. UNSUPPORTED_ADAPTER: what
  // add_weighted_adapter would lose silently (DoRA, biases, replaced modules), and experts.
  // BASE_MODEL_MISMATCH: layers that are replicated differently.
  static absl::StatusOr<std::unique_ptr<Composition>> Plan(const ComposeSpec& spec,
                                                           std::vector<ComposeInput> inputs,
                                                           const Kernels& kernels,
                                                           ThreadPool& pool);

  const std::shared_ptr<const AdapterManifest>& manifest() const { return manifest_; }

  // A factor of a module of the manifest. Each once; modules in about their order, both factors of
  // one before those of the next. NON_FINITE_RESULT when a value does not fit into F32; CANCELLED.
  absl::StatusOr<Tensor> Take(size_t module, TensorRole role, const Cancellation& cancellation);

  // By path, once all tensors were taken; none of methods without SVD.
  const std::map<std::string, std::vector<double>>& singular_values() const {
    return singular_values_;
  }

 private:
  // An input that has a module, and where.
  struct Part {
    const ComposeInput* input = nullptr;
    size_t position = 0;  // among the inputs
    size_t module = 0;    // in its manifest
    const ModuleInfo& info() const { return input->manifest->modules[module]; }
    double factor() const { return input->weight * info().scale; }
  };
  struct Pair {
    Tensor lora_a;
    Tensor lora_b;
    std::vector<double> values;
  };
  using Parts = std::map<std::string, std::vector<Part>>;  // by path

  Composition(const ComposeSpec& spec, std::vector<ComposeInput> inputs, const Kernels& kernels,
              ThreadPool& pool);

  // Plans (compose_plan.cc).
  absl::Status CheckSpec() const;
  absl::StatusOr<Parts> FindParts() const;
  absl::StatusOr<ModuleInfo> PlanModule(const std::vector<Part>& parts) const;
  absl::StatusOr<int64_t> RankOf(const std::vector<Part>& parts) const;
  int64_t LargestRank(const ComposeInput& input) const;

  // Computes (composition.cc).
  absl::Status ComputeFrom(size_t module, const Cancellation& cancellation);
  absl::StatusOr<Pair> Compute(size_t module, const Cancellation& cancellation) const;
  MixRule Rule() const;
  absl::StatusOr<Tensor> MixFactors(const std::vector<Part>& parts,
                                    const std::vector<StoredPair>& stored, TensorRole role,
                                    const Cancellation& cancellation) const;
  absl::StatusOr<Tensor> MixDeltas(const std::vector<Part>& parts,
                                   const std::vector<StoredPair>& stored,
                                   const Cancellation& cancellation) const;

  const ComposeSpec spec_;
  MethodTraits traits_;
  const std::vector<ComposeInput> inputs_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  std::shared_ptr<const AdapterManifest> manifest_;
  std::vector<std::vector<Part>> parts_;  // of each module of the manifest
  std::map<size_t, Pair> ready_;          // computed, and not taken yet
  std::vector<bool> computed_;
  std::map<std::string, std::vector<double>> singular_values_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_COMPOSE_COMPOSITION_H_
