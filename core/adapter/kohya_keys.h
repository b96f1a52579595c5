// Tensor names of kohya's sd-scripts and of LyCORIS: <module>.lora_down.weight, where the module's
// path usually has underscores for dots behind a prefix that names its model ("lora_unet_").
#ifndef ADAPTERD_CORE_ADAPTER_KOHYA_KEYS_H_
#define ADAPTERD_CORE_ADAPTER_KOHYA_KEYS_H_

#include <string>
#include <string_view>

#include "core/adapter/diffusion_key.h"

namespace adapterd {

// The component stays in the module's name: a flattened name says nothing of where it ends.
DiffusionKey ParseKohyaKey(std::string_view name);

// True for names that nothing but such a file has.
bool IsKohyaName(std::string_view name);

// `path` with underscores for dots.
std::string FlattenedPath(std::string_view path);

// A flattened name without the prefix of its component: "lora_unet_down_blocks_0_conv" is
// "down_blocks_0_conv". Empty when it has none.
std::string_view WithoutComponent(std::string_view module);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_KOHYA_KEYS_H_
