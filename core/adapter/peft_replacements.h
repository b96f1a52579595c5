// What a PEFT adapter puts in the place of the base model's tensors: modules_to_save, saved
// embeddings and biases, trainable tokens.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_REPLACEMENTS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_REPLACEMENTS_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/adapter/peft_checks.h"
#include "core/adapter/peft_config.h"
#include "core/adapter/peft_tensors.h"

namespace adapterd {

// The kReplacement module of a weight, a bias, or both (null: none). `parameter`: what the weight
// is called when not "weight"; empty otherwise. nullopt: refused.
std::optional<PlannedPart> PlanWholeReplacement(const std::string& path, std::string_view parameter,
                                                const SafetensorsEntry* weight,
                                                const SafetensorsEntry* bias, TensorChecks& checks);

// The kReplacement modules. The bias of a module that has one of `pairs` goes with the pair; here
// it is warned about.
std::vector<PlannedPart> PlanReplacements(const PeftConfig& config, const PeftTensors& tensors,
                                          const std::vector<PlannedPart>& pairs,
                                          TensorChecks& checks, ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_REPLACEMENTS_H_
