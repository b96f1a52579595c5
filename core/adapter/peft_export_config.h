// The config of an export, and the names of its tensors.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_EXPORT_CONFIG_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_EXPORT_CONFIG_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "core/adapter/adapter.h"
#include "core/adapter/tensor_role.h"

namespace adapterd {

// adapter_config.json: sorted keys, two spaces, as PEFT writes it. Every module is targeted by its
// whole path; ranks and alphas that are not the most frequent ones are given by anchored patterns.
// UNSUPPORTED_ADAPTER for what another format has and PEFT has no form for.
absl::StatusOr<std::string> MakePeftConfig(const AdapterManifest& manifest);

// The module that owns the parameter which the pair changes: the path, but for a parameter's name.
std::string_view OwnerOf(const ModuleInfo& module);

// What PEFT calls a tensor of the manifest's module, "base_model.model.<path>.lora_A.weight".
std::string PeftTensorName(const AdapterManifest& manifest, size_t module, TensorRole role);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_EXPORT_CONFIG_H_
