// The pairs of an adapter of a diffusion model whose ranks and alphas lie in the weights file:
// those of kohya's sd-scripts, and of diffusers when it wrote no config.
#ifndef ADAPTERD_CORE_ADAPTER_DIFFUSION_PAIRS_H_
#define ADAPTERD_CORE_ADAPTER_DIFFUSION_PAIRS_H_

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/adapter/diffusion_key.h"
#include "core/adapter/plan_parts.h"
#include "core/formats/input_file.h"
#include "core/formats/safetensors.h"

namespace adapterd {

// The tensors of one module; null: the file has none.
struct DiffusionTensors {
  const SafetensorsEntry* down = nullptr;
  const SafetensorsEntry* up = nullptr;
  const SafetensorsEntry* up_bias = nullptr;
  const SafetensorsEntry* magnitude = nullptr;
  const SafetensorsEntry* alpha = nullptr;

  // Some tensor, to name the module by.
  const SafetensorsEntry& Any() const;
};

// By component and path.
using DiffusionModules = std::map<std::pair<std::string, std::string>, DiffusionTensors>;

// Every tensor finds its place or is a problem: INVALID_ADAPTER when no rule explains it or two
// claim one place, UNSUPPORTED_ADAPTER for parts of methods that are not read. Points into
// `header`.
DiffusionModules SortDiffusionTensors(const SafetensorsHeader& header,
                                      DiffusionKey (*parse)(std::string_view name),
                                      TensorChecks& checks);

// By the tensors' names.
using AlphaValues = std::map<std::string, double, std::less<>>;

// Reads the alphas, a few bytes each. What is not one finite number is reported and left out:
// SHAPE as INVALID_ADAPTER, UNSUPPORTED_DTYPE, NON_FINITE_WEIGHTS, errors of the disk.
AlphaValues ReadAlphas(const InputFile& weights, const DiffusionModules& modules,
                       TensorChecks& checks);

// What an alpha of zero means.
enum class ZeroAlpha { kIsRank, kIsZero };

// The part of one module, whose path in the manifest is `path`: A [rank, in] and B [out, rank],
// with kernels both or none of them, and scale = alpha / rank. A module without alpha has its rank
// for one. nullopt: refused (INVALID_ADAPTER for half pairs, ranks that differ, what stands alone;
// UNSUPPORTED_ADAPTER for magnitudes of inputs). Pure.
std::optional<PlannedPart> PlanDiffusionPair(const std::string& path,
                                             const DiffusionTensors& tensors,
                                             const AlphaValues& alphas, ZeroAlpha zero,
                                             TensorChecks& checks);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_DIFFUSION_PAIRS_H_
