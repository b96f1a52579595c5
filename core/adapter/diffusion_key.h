// A tensor's name in an adapter of a diffusion model, as the tools around Stable Diffusion write
// them: kohya_keys.h and diffusers_keys.h take names apart.
#ifndef ADAPTERD_CORE_ADAPTER_DIFFUSION_KEY_H_
#define ADAPTERD_CORE_ADAPTER_DIFFUSION_KEY_H_

#include <string>
#include <string_view>

namespace adapterd {

enum class DiffusionPart {
  kDown,       // A [rank, in, kernel...]
  kUp,         // B [out, rank, 1...]
  kUpBias,     // B's own bias
  kMagnitude,  // DoRA
  kAlpha,      // one number, divided by the rank
  kRefused,    // of a method that is not read
  kUnknown,
};

struct DiffusionKey {
  DiffusionPart part = DiffusionPart::kUnknown;
  std::string component;  // "unet", "text_encoder_2": the model that the module is in; may be empty
  std::string module;     // within the component; empty unless the part is known
  std::string_view why;   // kRefused: ends the sentence "tensor X is a part of ..."
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_DIFFUSION_KEY_H_
