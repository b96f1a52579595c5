// What a Merge request asks of its adapters.
#ifndef ADAPTERD_SERVICE_MERGE_PARTS_H_
#define ADAPTERD_SERVICE_MERGE_PARTS_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/compute/merge.h"
#include "core/registry/adapter_handle.h"
#include "service/adapter_refs.h"
#include "service/merge_plan.h"

namespace adapterd {

// One adapter's part in the merge.
struct MergePart {
  ResolvedModule module;
  const AdapterRef* ref = nullptr;
  const AdapterHandle* adapter = nullptr;
  double weight = 1;  // of the request

  const ModuleInfo& info() const { return *module.info; }
  const ModuleExtras& extras() const { return (*adapter)->extras(module.index); }

  // The base weight that the adapter brings along: its module is one, or the next is.
  std::optional<size_t> ReplacedIndex() const;
  const ModuleInfo* ReplacedInfo() const {
    return ReplacedIndex() ? &adapter->manifest().modules[*ReplacedIndex()] : nullptr;
  }
};

// A weight of any number of dimensions as a matrix.
struct WeightMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  WeightLayout layout = WeightLayout::kOutIn;
};

// Everything that MergeWeight reads, alive until it is done.
struct MergeInput {
  std::deque<PairFactors> factors;
  std::vector<MergeTerm> terms;
  MergeOptions options;
};

// The parts of all adapters that target the module, which are marked `used`. Views plan and
// handles, one for each of the plan's references.
absl::StatusOr<std::vector<MergePart>> ResolveMerge(const MergePlan& plan,
                                                    const std::vector<AdapterHandle>& handles,
                                                    std::vector<bool>& used);

// The weight as the module's matrix, in the base model's own layout: that of embeddings and
// convolutions is fixed, linear layers have the request's. SHAPE_MISMATCH.
absl::StatusOr<WeightMatrix> ReadMatrix(const MergePlan& plan, const MergePart& part);

// Copies the factors. SHAPE_MISMATCH when a replacement has another shape than the weight.
absl::StatusOr<MergeInput> ReadMergeInput(const MergePlan& plan,
                                          const std::vector<MergePart>& parts,
                                          const WeightMatrix& matrix);

// Tells adapter and module.
absl::Status About(const absl::Status& status, const MergePart& part);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MERGE_PARTS_H_
