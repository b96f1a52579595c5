// What a tensor of an adapter is for.
#ifndef ADAPTERD_CORE_ADAPTER_TENSOR_ROLE_H_
#define ADAPTERD_CORE_ADAPTER_TENSOR_ROLE_H_

#include <array>
#include <cstddef>
#include <string_view>

namespace adapterd {

enum class TensorRole {
  kLoraA,
  kLoraB,
  kLoraE,     // AdaLoRA: factors on the rows of A
  kLambdaB,   // VeRA: factors on the rows of B
  kLambdaD,   // VeRA: factors on the rows of A
  kLoraBias,  // B's own bias
  kMagnitude,
  kWeight,  // of the base model, replaced
  kBias,    // of the base model, replaced
};
inline constexpr size_t kTensorRoles = 9;

// As the revision calls it.
constexpr std::string_view RoleName(TensorRole role) {
  constexpr std::array<std::string_view, kTensorRoles> kNames = {
      "lora_a",    "lora_b",    "lora_e", "lambda_b", "lambda_d",
      "lora_bias", "magnitude", "weight", "bias"};
  return kNames[static_cast<size_t>(role)];
}

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_TENSOR_ROLE_H_
