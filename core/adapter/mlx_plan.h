// Config and header of an MLX adapter, checked against each other: what is to be read from where.
#ifndef ADAPTERD_CORE_ADAPTER_MLX_PLAN_H_
#define ADAPTERD_CORE_ADAPTER_MLX_PLAN_H_

#include <optional>
#include <string_view>

#include "core/adapter/adapter_reader.h"
#include "core/adapter/mlx_config.h"
#include "core/adapter/problems.h"
#include "core/adapter/source_files.h"
#include "core/adapter/weights_plan.h"
#include "core/formats/safetensors.h"

namespace adapterd {

// `weights_file` is what problems call the file that `header` came from. With an error among the
// problems the plan has the modules that are sound; nullopt when there is none. INVALID_ADAPTER for
// half pairs, ranks that differ, tensors that no rule explains or that the config does not target;
// UNSUPPORTED_ADAPTER for DoRA on embeddings and experts. Pure.
//
// What a pair is, its shapes tell: lora_a [in, rank] and lora_b [rank, out] of a linear layer,
// [tokens, rank] and [rank, dim] of an embedding, which its name tells; lora_a [experts, rank, in]
// (before October 2025 [experts x rank, in]) and lora_b [experts, out, rank] of experts.
std::optional<WeightsPlan> BuildMlxPlan(const MlxConfig& config, const SafetensorsHeader& header,
                                        std::string_view weights_file, ProblemList& problems);

// Config and weights of a folder, on the way to one plan. BASE_MODEL_MISMATCH when the config names
// another base than `spec`, and all that ReadMlxConfig and BuildMlxPlan find. nullopt when there is
// nothing to read.
std::optional<WeightsPlan> PlanMlx(const SourceFiles& files, const SourceSpec& spec,
                                   ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_MLX_PLAN_H_
