// LoRA on parameters (target_parameters of PEFT): which pair belongs to which parameter, and which
// way round its factors are (peft/tuners/lora/layer.py, ParamWrapper).
#ifndef ADAPTERD_CORE_ADAPTER_PEFT_EXPERTS_H_
#define ADAPTERD_CORE_ADAPTER_PEFT_EXPERTS_H_

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/tensor/shape.h"

namespace adapterd {

// What a base checkpoint tells about the parameters that an adapter changes.
struct BaseFacts {
  // Of the tensor with this path; nullopt: the base has none.
  std::function<std::optional<Shape>(std::string_view path)> shape_of;
  // Expert parameters are [experts, in, out], as in GPT-OSS and Llama 4, not [experts, out, in].
  bool experts_are_in_out = false;
};

// The parameters of `module` among `target_parameters`, in the order in which PEFT wraps them: the
// last is the outermost, whose tensors have no ".base_layer" in their names. UNSUPPORTED_ADAPTER
// when several are targeted and the order in which their module registers them is not known.
absl::StatusOr<std::vector<std::string>> TargetedParameters(
    std::string_view module, const std::vector<std::string>& target_parameters);

// Whether `left` is registered before `right`. REQUIRES: TargetedParameters has ordered them.
bool IsRegisteredBefore(std::string_view left, std::string_view right);

// How wide the stored factors are: lora_A [experts x rank, a_columns], lora_B [b_rows, experts x
// rank].
struct ExpertFactors {
  std::string_view path;  // of the parameter
  int64_t a_columns = 0;
  int64_t b_rows = 0;
};

// Whether lora_A works on the outputs and lora_B on the inputs, which PEFT did in some versions.
// `base` may be null. BASE_REQUIRED when only the base's shapes or kind could tell,
// BASE_MODEL_MISMATCH when they do not fit, INVALID_ADAPTER when the two sides are equally long and
// the config has no peft_version.
absl::StatusOr<bool> ExpertsAreSwapped(const ExpertFactors& factors, std::string_view peft_version,
                                       const BaseFacts* base);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PEFT_EXPERTS_H_
