// Tensor names of diffusers: [<component>.]<module>.lora.down.weight and its older and newer
// spellings.
#ifndef ADAPTERD_CORE_ADAPTER_DIFFUSERS_KEYS_H_
#define ADAPTERD_CORE_ADAPTER_DIFFUSERS_KEYS_H_

#include <string_view>

#include "core/adapter/diffusion_key.h"

namespace adapterd {

// Where a file's header keeps PEFT's config, one for each component, as JSON.
inline constexpr char kDiffusersMetadata[] = "lora_adapter_metadata";

DiffusionKey ParseDiffusersKey(std::string_view name);

// True for names that nothing but such a file has: spelled with down and up, or factors below a
// component.
bool IsDiffusersName(std::string_view name);

// "unet" of "unet.down_blocks.0"; empty when the first component of the name is none of diffusers'
// models.
std::string_view ComponentOf(std::string_view name);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_DIFFUSERS_KEYS_H_
