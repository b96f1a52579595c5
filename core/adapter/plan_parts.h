// What plans of every format are put together from.
#ifndef ADAPTERD_CORE_ADAPTER_PLAN_PARTS_H_
#define ADAPTERD_CORE_ADAPTER_PLAN_PARTS_H_

#include <string>
#include <string_view>
#include <vector>

#include "core/adapter/peft_checks.h"
#include "core/adapter/problems.h"
#include "core/adapter/weights_plan.h"
#include "core/formats/safetensors.h"

namespace adapterd {

// BASE_MODEL_MISMATCH when the request and the config (its key `field`) name different base models;
// `base_model` is the config's, and becomes the request's when it is empty.
void CheckBaseModel(const std::string& requested, const std::string& config_file,
                    std::string_view field, std::string& base_model, ProblemList& problems);

// A has the kernel of the base's convolution, B one of a single element.
bool IsConvolution(const SafetensorsEntry& a, const SafetensorsEntry& b);

// A [rank, in, kernel...] and B [out, rank, 1...], with the sizes that they give their module.
PlannedPart StartPair(const std::string& path, ModuleKind kind, const SafetensorsEntry& a,
                      const SafetensorsEntry& b);

// "dora" when any of them has a magnitude, else "lora".
std::string MethodOf(const std::vector<PlannedPart>& parts);

// In the order of the file.
void SortByOffset(std::vector<PlannedTensor>& tensors);

// Makes `parts` the modules of the plan: sorted by path, a pair before the weight that it is added
// to, their tensors by offset.
void SetModules(std::vector<PlannedPart> parts, WeightsPlan& plan);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_PLAN_PARTS_H_
