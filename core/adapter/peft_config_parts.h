// What ParsePeftConfig is made of. Each part reads its keys, reports what is wrong with them and
// then leaves the defaults in place.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_CONFIG_PARTS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_CONFIG_PARTS_H_

#include "core/adapter/config_fields.h"
#include "core/adapter/peft_config.h"

namespace adapterd {

// r, lora_alpha, use_rslora, rank_pattern, alpha_pattern, init_r, dropout; save_projection of VeRA.
void ReadPeftScaling(ConfigFields& fields, PeftConfig& config);

// target_modules, exclude_modules, layers_to_transform, layers_pattern.
void ReadPeftTargets(ConfigFields& fields, PeftConfig& config);

// What a file can hold beside the pairs: magnitudes, biases, whole modules, rows, parameters; and
// which of these do not go together.
void ReadPeftExtras(ConfigFields& fields, PeftConfig& config);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_CONFIG_PARTS_H_
