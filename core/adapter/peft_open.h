// A PEFT adapter: its config and its weights file, on the way to one plan.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_OPEN_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_OPEN_H_

#include <optional>

#include "core/adapter/adapter_reader.h"
#include "core/adapter/base_tensors.h"
#include "core/adapter/problems.h"
#include "core/adapter/source_files.h"
#include "core/adapter/weights_plan.h"

namespace adapterd {

// `base` is null without a base model. SOURCE_NOT_FOUND without a config; BASE_MODEL_MISMATCH
// when the config names another base than `spec`; all that BuildPeftPlan finds. nullopt when there
// is nothing to read.
std::optional<WeightsPlan> PlanPeft(const SourceFiles& files, const SourceSpec& spec,
                                    const BaseTensors* base, ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_OPEN_H_
