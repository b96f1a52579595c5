// An adapter in the format of kohya's sd-scripts, on the way to one plan.
#ifndef ADAPTERD_CORE_ADAPTER_KOHYA_PLAN_H_
#define ADAPTERD_CORE_ADAPTER_KOHYA_PLAN_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "core/adapter/adapter_reader.h"
#include "core/adapter/base_tensors.h"
#include "core/adapter/problems.h"
#include "core/adapter/source_files.h"
#include "core/adapter/weights_plan.h"
#include "core/formats/checkpoint.h"

namespace adapterd {

// The modules of a base model by their flattened names: with underscores for dots. Immutable; any
// thread. The tensors must outlive it.
class FlatNames {
 public:
  explicit FlatNames(const std::vector<CheckpointTensor>& tensors);

  // The tensors <path>.weight whose path, or else whose path without its first or its first two
  // components, is `flat` when it is flattened. More than one: it cannot be told.
  std::vector<const CheckpointTensor*> Find(std::string_view flat) const;

 private:
  using Index = absl::flat_hash_map<std::string, std::vector<const CheckpointTensor*>>;

  Index whole_;
  Index tails_;
};

// `base` is null without one; modules then keep their flattened names, prefix and
// all, as do those that are not in it. BASE_MODEL_MISMATCH for a name that several of its modules
// may mean, INVALID_ADAPTER for two names that mean one, UNSUPPORTED_ADAPTER for LyCORIS's other
// methods, and all that SortDiffusionTensors and PlanDiffusionPair find. nullopt when there is
// nothing to read.
std::optional<WeightsPlan> PlanKohya(const SourceFiles& files, const SourceSpec& spec,
                                     const BaseTensors* base, ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_KOHYA_PLAN_H_
