// The factors that a new adapter begins with: those of PEFT (reset_lora_parameters in
// peft/tuners/lora/layer.py), drawn so that they are the same on every machine.
//
//   linear     A: Kaiming-uniform with a = sqrt(5), which is uniform in +-1/sqrt(in_features); B:
//   zero embedding  A: zero; B: normal with mean 0 and deviation 1
//
// Either way B A is zero. docs/creation.md says how the numbers are made.
#ifndef ADAPTERD_CORE_ADAPTER_FRESH_FACTORS_H_
#define ADAPTERD_CORE_ADAPTER_FRESH_FACTORS_H_

#include <cstdint>
#include <span>

#include "core/adapter/adapter.h"
#include "core/adapter/tensor_role.h"
#include "core/base/random_stream.h"
#include "core/tensor/tensor.h"

namespace adapterd {

// `role` is kLoraA or kLoraB, `module` a linear one or an embedding. Depends on the seed and the
// module's path, kind, sizes and types alone. Pure; about 2 ns an element of a uniform A.
Tensor FreshFactor(const ModuleInfo& module, TensorRole role, uint64_t seed);

// Odd multiples of bound / 2^24 between -bound and bound, each as likely as the others, rounded to
// F32. REQUIRES: a positive bound.
void FillUniform(RandomStream& random, double bound, std::span<float> values);

// Normal with mean 0 and deviation 1, exactly but for the rounding to F32.
void FillNormal(RandomStream& random, std::span<float> values);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_FRESH_FACTORS_H_
