// Config and header of a PEFT adapter, checked against each other: what is to be read from where.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_PLAN_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_PLAN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/adapter/adapter.h"
#include "core/adapter/peft_config.h"
#include "core/adapter/peft_experts.h"
#include "core/adapter/problems.h"
#include "core/adapter/tensor_role.h"
#include "core/formats/safetensors.h"

namespace adapterd {

// One tensor in the weights file.
struct PlannedTensor {
  TensorRole role = TensorRole::kLoraA;
  DType dtype = DType::kF32;
  Shape shape;
  int64_t offset = 0;
  int64_t bytes = 0;
  std::string name;
};

struct PlannedModule {
  std::vector<PlannedTensor> tensors;  // by offset
  bool swapped = false;                // kExperts: see ExpertsAreSwapped
};

struct PeftPlan {
  PeftMethod method = PeftMethod::kLora;
  AdapterManifest manifest;
  std::vector<PlannedModule> modules;  // one for each of the manifest's
  std::vector<PlannedTensor> shared;   // VeRA's projections, kLoraA and kLoraB
};

// `weights_file` is what problems call the file that `header` came from; `base` may be null. With
// an error among the problems the plan has the modules that are sound, so that their weights can be
// judged too; nullopt when there is none.
std::optional<PeftPlan> BuildPeftPlan(const PeftConfig& config, const SafetensorsHeader& header,
                                      std::string_view weights_file, const BaseFacts* base,
                                      ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_PLAN_H_
