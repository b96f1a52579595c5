#include "core/adapter/diffusers_keys.h"

#include <algorithm>
#include <iterator>
#include <string>

namespace adapterd {
namespace {

// The models of diffusers' pipelines that take adapters; "diffusion_model" is what ComfyUI calls
// the one that denoises.
constexpr std::string_view kComponents[] = {
    "unet",  "transformer",   "transformer_2", "text_encoder", "text_encoder_2",  "text_encoder_3",
    "prior", "image_encoder", "controlnet",    "vae",          "diffusion_model",
};

struct Suffix {
  std::string_view end;  // of the name, from the dot behind the module on
  DiffusionPart part;
  bool is_peft = false;  // PEFT has it, too
};

constexpr Suffix kSuffixes[] = {
    {".lora.down.weight", DiffusionPart::kDown},
    {".lora.up.weight", DiffusionPart::kUp},
    {".lora_linear_layer.down.weight", DiffusionPart::kDown},
    {".lora_linear_layer.up.weight", DiffusionPart::kUp},
    {".lora_A.weight", DiffusionPart::kDown, true},
    {".lora_B.weight", DiffusionPart::kUp, true},
    {".lora_B.bias", DiffusionPart::kUpBias, true},
    {".lora_magnitude_vector.weight", DiffusionPart::kMagnitude, true},
    {".lora_magnitude_vector", DiffusionPart::kMagnitude, true},
    {".dora_scale", DiffusionPart::kMagnitude, true},
    {".alpha", DiffusionPart::kAlpha, true},
};

// Attention processors of 2023 held the factors of the four layers beside them: what they were
// called, and the layers' names in the UNet and in a text encoder.
struct ProcessorLayer {
  std::string_view name;
  std::string_view in_unet;
  std::string_view in_text_encoder;
};

constexpr ProcessorLayer kProcessorLayers[] = {
    {"to_q_lora", "to_q", "q_proj"},
    {"to_k_lora", "to_k", "k_proj"},
    {"to_v_lora", "to_v", "v_proj"},
    {"to_out_lora", "to_out.0", "out_proj"},
};

constexpr std::string_view kProcessor = ".processor";

// GPT-2 and its kin call their stack "transformer", too: an adapter of theirs that lost its config
// is none of diffusers'.
constexpr std::string_view kLanguageModels[] = {"transformer.h.", "transformer.wte.",
                                                "transformer.wpe.", "transformer.encoder."};

bool IsOfLanguageModel(std::string_view name) {
  return std::any_of(std::begin(kLanguageModels), std::end(kLanguageModels),
                     [name](std::string_view begin) { return name.starts_with(begin); });
}

// "<attention>[.processor].to_q_lora.down.weight", without its component.
bool ParseProcessorName(std::string_view name, DiffusionKey& key) {
  for (const auto& [end, part] : {std::pair{".down.weight", DiffusionPart::kDown},
                                  std::pair{".up.weight", DiffusionPart::kUp}}) {
    if (!name.ends_with(end)) continue;
    const std::string_view layer_path = name.substr(0, name.size() - std::string_view(end).size());
    const size_t dot = layer_path.rfind('.');
    if (dot == std::string_view::npos) continue;
    for (const auto& [old_name, in_unet, in_text_encoder] : kProcessorLayers) {
      if (layer_path.substr(dot + 1) != old_name) continue;
      std::string_view attention = layer_path.substr(0, dot);
      const bool in_encoder = key.component.starts_with("text_encoder");
      if (attention.ends_with(kProcessor)) attention.remove_suffix(kProcessor.size());
      if (attention.empty()) continue;
      key.part = part;
      key.module = std::string(attention) + '.';
      key.module += in_encoder ? in_text_encoder : in_unet;
      return true;
    }
  }
  return false;
}

}  // namespace

std::string_view ComponentOf(std::string_view name) {
  const std::string_view first = name.substr(0, name.find('.'));
  if (first.size() == name.size()) return "";
  const auto* const found = std::find(std::begin(kComponents), std::end(kComponents), first);
  return found == std::end(kComponents) ? "" : *found;
}

DiffusionKey ParseDiffusersKey(std::string_view name) {
  DiffusionKey key;
  key.component = ComponentOf(name);
  if (!key.component.empty()) name.remove_prefix(key.component.size() + 1);
  for (const Suffix& suffix : kSuffixes) {
    if (name.size() <= suffix.end.size() || !name.ends_with(suffix.end)) continue;
    key.part = suffix.part;
    key.module = name.substr(0, name.size() - suffix.end.size());
    return key;
  }
  ParseProcessorName(name, key);
  return key;
}

bool IsDiffusersName(std::string_view name) {
  const DiffusionKey key = ParseDiffusersKey(name);
  if (key.part != DiffusionPart::kDown && key.part != DiffusionPart::kUp) return false;
  if (!key.component.empty()) return !IsOfLanguageModel(name);
  return std::none_of(std::begin(kSuffixes), std::end(kSuffixes), [name](const Suffix& suffix) {
    return suffix.is_peft && name.ends_with(suffix.end);
  });
}

}  // namespace adapterd
