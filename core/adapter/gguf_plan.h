// The header of a GGUF adapter (llama.cpp: src/llama-adapter.cpp) as modules: what is to be read
// from where.
#ifndef ADAPTERD_CORE_ADAPTER_GGUF_PLAN_H_
#define ADAPTERD_CORE_ADAPTER_GGUF_PLAN_H_

#include <optional>
#include <string>
#include <string_view>

#include "core/adapter/gguf_heads.h"
#include "core/adapter/problems.h"
#include "core/adapter/source_files.h"
#include "core/adapter/weights_plan.h"
#include "core/formats/gguf.h"

namespace adapterd {

// llama.cpp's rules: the scale of a pair is alpha / rank, or 1 when alpha is missing or 0. Warnings
// say what a GGUF cannot tell. Errors: MALFORMED_CONFIG for keys of the wrong type,
// UNSUPPORTED_ADAPTER for architectures and kinds of adapters that are not known, INVALID_ADAPTER
// for what is no adapter, for tensors that no rule explains and for pairs that do not fit together,
// BASE_REQUIRED and BASE_MODEL_MISMATCH about heads. nullopt: nothing is sound.
std::optional<WeightsPlan> BuildGgufPlan(const GgufHeader& header, std::string_view file,
                                         const GgufHeads& heads, ProblemList& problems);

// The same of files, for `base_model`. Also what ReadGgufHeader finds.
std::optional<WeightsPlan> PlanGguf(const SourceFiles& files, const std::string& base_model,
                                    const GgufHeads& heads, ProblemList& problems);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_GGUF_PLAN_H_
