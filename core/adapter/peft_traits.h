// What a PEFT config says beside its modules, kept for exports.
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_TRAITS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_TRAITS_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace adapterd {

// Which biases of the base model the file replaces.
enum class PeftBias { kNone, kAll, kLoraOnly };

// trainable_token_indices: row i of a layer's tensor replaces row ids[i] of that embedding. The ids
// of a layer are distinct.
struct TrainedTokens {
  // The file has a plain list: the ids belong to the input embedding of the model, whatever its
  // name. `layers` then has one entry, under the name that PEFT takes when it finds no other.
  bool of_input_embedding = false;
  std::vector<std::pair<std::string, std::vector<int64_t>>> layers;  // in the order of the file
};

struct PeftTraits {
  std::string task_type;
  bool use_rslora = false;      // never with AdaLoRA, which ignores it
  bool fan_in_fan_out = false;  // says how the base weight is stored; changes no factor
  PeftBias bias = PeftBias::kNone;
  std::vector<std::string> modules_to_save;  // ends of paths of modules that the file replaces
  TrainedTokens trained_tokens;
  // [start, end) of layers of the base model; the paths in the file count through these.
  std::vector<std::pair<int64_t, int64_t>> layer_replication;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_TRAITS_H_
