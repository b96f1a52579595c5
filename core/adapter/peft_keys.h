// Tensor names of PEFT: which module, which part of the adapter.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_KEYS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_KEYS_H_

#include <string>
#include <string_view>

namespace adapterd {

// Real paths have up to about 15 components. Matching a path looks at each of its tails.
inline constexpr size_t kMaxPathComponents = 64;

enum class PeftTensorKind {
  kLoraA,        // <module>.lora_A.weight
  kLoraB,        // <module>.lora_B.weight
  kLoraBias,     // <module>.lora_B.bias
  kEmbedding,    // <module>.lora_embedding_A, _B
  kMagnitude,    // <module>.lora_magnitude_vector: DoRA
  kNested,       // a pair on a wrapper inside a wrapper: expert parameters, MultiheadAttention
  kVariant,      // extra tensors of KaSA, VeLoRA, MonteCLoRA
  kTokenRows,    // <module>.token_adapter.trainable_tokens_delta
  kBias,         // a bias of the base model
  kSavedWeight,  // a weight of the base model: base_layer, embed_tokens, lm_head
  kUnknown,
};

struct PeftKey {
  PeftTensorKind kind = PeftTensorKind::kUnknown;
  std::string module;  // path in the base model; of kUnknown the whole name, as far as stripped
  std::string adapter_name;  // left in the name by some trainers, "lora_A.default.weight"
};

// Strips what trainers wrap names in: torch.compile (_orig_mod), FSDP, activation checkpointing and
// PEFT's own base_model.model prefix, each if it is there.
PeftKey ParsePeftKey(std::string_view name);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_KEYS_H_
