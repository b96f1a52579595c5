#include "core/adapter/weights_plan.h"

#include <utility>

namespace adapterd {

ModuleTensors FoldNothing(StoredTensors stored) {
  const auto take = [&stored](TensorRole role) {
    return std::move(stored[static_cast<size_t>(role)]);
  };
  ModuleTensors tensors;
  tensors.lora_a = take(TensorRole::kLoraA);
  tensors.lora_b = take(TensorRole::kLoraB);
  tensors.lora_bias = take(TensorRole::kLoraBias);
  tensors.magnitude = take(TensorRole::kMagnitude);
  tensors.weight = take(TensorRole::kWeight);
  tensors.bias = take(TensorRole::kBias);
  return tensors;
}

}  // namespace adapterd
