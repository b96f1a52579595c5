// Config and header of a PEFT adapter, checked against each other: what is to be read from where.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_PLAN_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_PLAN_H_

#include <optional>
#include <string_view>

#include "core/adapter/peft_config.h"
#include "core/adapter/peft_experts.h"
#include "core/adapter/problems.h"
#include "core/adapter/weights_plan.h"
#include "core/formats/safetensors.h"

namespace adapterd {

// `weights_file` is what problems call the file that `header` came from; `base` may be null. With
// an error among the problems the plan has the modules that are sound, so that their weights can be
// judged too; nullopt when there is none.
std::optional<WeightsPlan> BuildPeftPlan(const PeftConfig& config, const SafetensorsHeader& header,
                                         std::string_view weights_file, const BaseFacts* base,
                                         ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_PLAN_H_
