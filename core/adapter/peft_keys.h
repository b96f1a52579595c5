// Tensor names of PEFT: which module, which part of the adapter.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_KEYS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_KEYS_H_

#include <string>
#include <string_view>

namespace adapterd {

// Real paths have up to about 15 components. Matching a path looks at each of its tails.
inline constexpr size_t kMaxPathComponents = 64;

enum class PeftTensorKind {
  kLoraA,       // <module>.lora_A.weight
  kLoraB,       // <module>.lora_B.weight
  kLoraBias,    // <module>.lora_B.bias
  kEmbeddingA,  // <module>.lora_embedding_A
  kEmbeddingB,  // <module>.lora_embedding_B
  kMagnitude,   // <module>.lora_magnitude_vector: DoRA
  kBareLoraA,   // <module>.lora_A, _B, _E: AdaLoRA
  kBareLoraB,
  kLoraE,
  kVeraLambdaB,  // <module>.vera_lambda_b, _d: VeRA
  kVeraLambdaD,
  kVeraA,  // base_model.vera_A, _B: VeRA's projections, shared by all modules
  kVeraB,
  kTokenRows,  // <module>.token_adapter.trainable_tokens_delta
  kWeight,     // <module>.weight of the base model
  kBias,       // <module>.bias of the base model
  kIgnored,    // buffers of VeLoRA and MonteCLoRA, which only training uses; originals of copies
  kAttention,  // a pair inside a wrapped module: MultiheadAttention
  kKasa,       // <module>.lora_diag
  kUnknown,
};

struct PeftKey {
  PeftTensorKind kind = PeftTensorKind::kUnknown;
  std::string module;  // path in the base model; of kUnknown the whole name, as far as stripped
  std::string adapter_name;  // left in the name by some trainers, "lora_A.default.weight"
  // How many wrappers lie between the module and the pair: PEFT puts one around the other for the
  // parameters that target_parameters names.
  int base_layers = 0;
  bool is_copy = false;  // below modules_to_save: gives way to a tensor without it
};

// Strips what trainers wrap names in: torch.compile (_orig_mod), FSDP, activation checkpointing and
// PEFT's own base_model.model prefix, each if it is there.
PeftKey ParsePeftKey(std::string_view name);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_KEYS_H_
