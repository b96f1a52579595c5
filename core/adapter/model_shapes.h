// The matrices of a transformer, by the sizes that describe it.
#ifndef ADAPTERD_CORE_ADAPTER_MODEL_SHAPES_H_
#define ADAPTERD_CORE_ADAPTER_MODEL_SHAPES_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/adapter/adapter.h"

namespace adapterd {

// Sizes as in config.json. 0: not known, and not needed by the targets.
struct ModelGeometry {
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;  // 0: as many as attention heads
  std::optional<int64_t> head_dim;  // unset: hidden_size / num_attention_heads
  std::optional<int64_t> vocab_size;
  // By target: its path, in which {layer} stands for the layer's number and {target} for the
  // target.
  std::map<std::string, std::string> path_templates;
};

// Whether sizes of 0 are errors, or give matrices without elements and models without layers.
enum class ZeroSizes { kRefused, kAllowed };

// What `targets` are in the model: path, kind, in_features and out_features, by path.
//
//   q_proj          hidden -> heads x head_dim         gate_proj, up_proj  hidden -> intermediate
//   k_proj, v_proj  hidden -> kv_heads x head_dim      down_proj           intermediate -> hidden
//   o_proj          heads x head_dim -> hidden         gate_up_proj        hidden -> 2 x
//   intermediate qkv_proj        hidden -> (heads + 2 x kv_heads) x head_dim embed_tokens    an
//   embedding, vocab -> hidden      lm_head             hidden -> vocab
//
// INVALID_FIELD, naming the field: no target, an unknown one, or one twice; sizes that a target
// needs and that are missing (or 0, if that is refused), negative ones of any kind, heads that do
// not divide, more than kMaxGeometrySize or, together, kMaxMadeModules; templates that give two
// modules one path or a path that CheckModulePath refuses.
absl::StatusOr<std::vector<ModuleInfo>> ModulesOf(const ModelGeometry& geometry,
                                                  const std::vector<std::string>& targets,
                                                  ZeroSizes zero_sizes = ZeroSizes::kRefused);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_MODEL_SHAPES_H_
