// What a PEFT adapter puts in the place of the base model's tensors: modules_to_save, saved
// embeddings and biases, trainable tokens.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_REPLACEMENTS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_REPLACEMENTS_H_

#include <vector>

#include "core/adapter/peft_checks.h"
#include "core/adapter/peft_config.h"
#include "core/adapter/peft_tensors.h"

namespace adapterd {

// The kReplacement modules. The bias of a module that has one of `pairs` goes with the pair; here
// it is warned about.
std::vector<PlannedPart> PlanReplacements(const PeftConfig& config, const PeftTensors& tensors,
                                          const std::vector<PlannedPart>& pairs,
                                          TensorChecks& checks, ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_REPLACEMENTS_H_
