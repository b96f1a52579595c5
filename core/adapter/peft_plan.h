// Config and header of a PEFT adapter, checked against each other: what is to be read from where.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_PLAN_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_PLAN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/adapter/adapter.h"
#include "core/adapter/peft_config.h"
#include "core/adapter/problems.h"
#include "core/formats/safetensors.h"

namespace adapterd {

// One factor in the weights file.
struct PlannedTensor {
  size_t module = 0;  // in the manifest
  bool is_lora_b = false;
  DType dtype = DType::kF32;
  Shape shape;
  int64_t offset = 0;
  int64_t bytes = 0;
};

struct PeftPlan {
  AdapterManifest manifest;            // without warnings
  std::vector<PlannedTensor> tensors;  // by offset; they fill the file behind its header
};

// `weights_file` is what problems call the file that `header` came from. nullopt when `problems`
// holds an error, also one from before.
std::optional<PeftPlan> BuildPeftPlan(const PeftConfig& config, const SafetensorsHeader& header,
                                      std::string_view weights_file, ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_PLAN_H_
