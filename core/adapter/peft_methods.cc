#include "core/adapter/peft_methods.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace adapterd {
namespace {

constexpr std::pair<std::string_view, PeftMethod> kMethods[] = {
    {"LORA", PeftMethod::kLora},
    {"ADALORA", PeftMethod::kAdaLora},
    {"VERA", PeftMethod::kVera},
};

constexpr std::string_view kPrompt = "it learns a prompt, not weights";
constexpr std::string_view kPrefix = "it learns keys and values of attention, not weights";
constexpr std::string_view kRotates = "it multiplies the base weight by rotations";

// What each does is in peft/tuners/<name> and in PEFT's page on it.
constexpr RefusedMethod kRefusedMethods[] = {
    {"ADAMSS", "its delta lives in clustered subspaces of the base weight's SVD", true},
    {"ADAPTION_PROMPT", "it adds prompts inside of attention layers"},
    {"BEFT", "it adds to biases, not to weights"},
    {"BOFT", kRotates},
    {"BONE", "its blocks are not low-rank pairs (it is now called MISS)", true},
    {"C3A", "its delta is block-circulant, of full rank", true},
    {"CARTRIDGE", kPrefix},
    {"CPT", kPrompt},
    {"DEFT", "its delta depends on the base weight", true},
    {"DELORA", "its delta is normalised by its own factors and scaled by the base weight", true},
    {"FOURIERFT", "its delta is a Fourier transform of sparse coefficients", true},
    {"FROD", "its delta has full rank, on bases shared between the layers", true},
    {"GLORA", "it scales and shifts the base weight and bias beside its pair"},
    {"GRALORA", "it has one pair for each block of the weight, not one for all", true},
    {"HIRA", "its delta is multiplied with the base weight, element by element", true},
    {"HRA", "it multiplies the base weight by Householder reflections"},
    {"IA3", "it scales activations instead of adding to weights"},
    {"LILY", "a router mixes factors that the layers share, by the input"},
    {"LN_TUNING", "it replaces the weights of norm layers"},
    {"LOHA", "its delta is the elementwise product of two low-rank products", true},
    {"LOKR", "its delta is a Kronecker product", true},
    {"MISS", "its blocks are not low-rank pairs", true},
    {"MULTITASK_PROMPT_TUNING", kPrompt},
    {"OFT", kRotates},
    {"OSF", "it changes the base weight's own singular vectors"},
    {"PEANUT", "its delta is a neural network's function of the base weight", true},
    {"POLY", "a router mixes several pairs by the task"},
    {"PREFIX_TUNING", kPrefix},
    {"PROMPT_TUNING", kPrompt},
    {"PSOFT", "it rotates the base weight inside of a principal subspace", true},
    {"PVERA", "its delta is drawn from a distribution that depends on the input"},
    {"P_TUNING", kPrompt},
    {"RANDLORA", "its delta is a sum of many random pairs, of full rank", true},
    {"ROAD", "it rotates and scales activations instead of adding to weights"},
    {"SHIRA", "its delta is sparse, of full rank"},
    {"SUPERTUNING", "its delta is sparse, with or without a pair beside it"},
    {"TINYLORA", "its delta needs the SVD of the base weight and random projections", true},
    {"TRAINABLE_TOKENS",
     "it replaces rows of an embedding and has no pairs; LORA with trainable_token_indices is "
     "read"},
    {"UNILORA", "its factors are random projections of one vector for all layers", true},
    {"VBLORA", "its factors are mixtures of a vector bank for all layers", true},
    {"WAVEFT", "its delta is a wavelet transform of sparse coefficients", true},
    {"XLORA", "a network mixes several other adapters by the input"},
};

constexpr RefusedSwitch kRefusedSwitches[] = {
    {"alora_invocation_tokens",
     "activated LoRA works from its invocation tokens on, and tokens are not known here"},
    {"use_qalora", "QA-LoRA works on pooled inputs of a quantised layer"},
    {"arrow_config",
     "Arrow routes between other adapters that are not in this file; load those by themselves"},
    {"kasa_config",
     "KaSA cuts singular values off the base weight and puts a diagonal between the factors"},
};

struct InformationalKey {
  std::string_view key;
  bool lora = false;
  bool adalora = false;
  bool vera = false;
};

// Of the initialisations (eva_config, ...), init_lora_weights says which one counts. AdaLoRA trains
// with init_r in place of r.
constexpr InformationalKey kInformationalKeys[] = {
    {"auto_mapping", true, true, true},
    {"revision", true, true, true},
    {"inference_mode", true, true, true},
    {"loftq_config", true, true},
    {"eva_config", true, true},
    {"corda_config", true, true},
    {"lora_ga_config", true, true},
    {"megatron_core", true, true},
    {"megatron_config", true, true},
    {"qalora_group_size", true, true},
    {"velora_config", true, true},
    {"monteclora_config", true, true},
    {"ensure_weight_tying", true, true},
    {"r", false, true},
    {"target_r", false, true},
    {"tinit", false, true},
    {"tfinal", false, true},
    {"deltaT", false, true},
    {"beta1", false, true},
    {"beta2", false, true},
    {"orth_reg_weight", false, true},
    {"total_step", false, true},
    {"projection_prng_key", false, false, true},
    {"d_initial", false, false, true},
    {"init_weights", false, false, true},
};

}  // namespace

std::string_view PeftTypeName(PeftMethod method) {
  for (const auto& [name, value] : kMethods) {
    if (value == method) return name;
  }
  return "";
}

std::optional<PeftMethod> FindPeftMethod(std::string_view peft_type) {
  for (const auto& [name, method] : kMethods) {
    if (name == peft_type) return method;
  }
  return std::nullopt;
}

std::span<const RefusedMethod> RefusedMethods() { return kRefusedMethods; }

std::string WhyRefused(std::string_view peft_type) {
  const auto* const found = std::find_if(
      std::begin(kRefusedMethods), std::end(kRefusedMethods),
      [peft_type](const RefusedMethod& method) { return method.peft_type == peft_type; });
  if (found == std::end(kRefusedMethods)) {
    return "no such method is known; those that are read are LORA, ADALORA and VERA";
  }
  if (!found->has_delta) return std::string(found->why);
  return fmt::format("{}; PEFT's save_as_lora may turn it into a LoRA, approximately", found->why);
}

std::vector<std::string_view> InformationalKeys(PeftMethod method) {
  std::vector<std::string_view> keys;
  for (const InformationalKey& entry : kInformationalKeys) {
    const bool known = method == PeftMethod::kLora      ? entry.lora
                       : method == PeftMethod::kAdaLora ? entry.adalora
                                                        : entry.vera;
    if (known) keys.push_back(entry.key);
  }
  return keys;
}

std::span<const RefusedSwitch> RefusedSwitches() { return kRefusedSwitches; }

}  // namespace adapterd
