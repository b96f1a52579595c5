// Experts that an adapter takes for one parameter and a checkpoint keeps apart.
#ifndef ADAPTERD_CORE_MERGE_EXPERT_NAMES_H_
#define ADAPTERD_CORE_MERGE_EXPERT_NAMES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "core/adapter/adapter.h"
#include "core/adapter/base_model_names.h"

namespace adapterd {

// One tensor that holds some outputs of one expert of a fused module.
struct ExpertTensor {
  const CheckpointTensor* tensor = nullptr;
  int64_t expert = 0;
  int64_t first_output = 0;
  int64_t outputs = 0;
};

// transformers 5 loads mixtral's experts.<e>.w1, w3 and w2 and others' experts.<e>.gate_proj,
// up_proj and down_proj as two parameters experts.gate_up_proj [experts, 2 x intermediate, hidden],
// gate before up, and experts.down_proj [experts, hidden, intermediate], and writes them apart
// again (transformers/conversion_mapping.py). The tensors that the fused `module` means, as far as
// all of them are there with the shapes that it needs; else none.
std::vector<ExpertTensor> FindExpertTensors(const ModuleInfo& module, const BaseNames& names);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_MERGE_EXPERT_NAMES_H_
