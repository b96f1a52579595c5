// What config.json says about the sizes of a base model.
#ifndef ADAPTERD_CORE_ADAPTER_BASE_MODEL_GEOMETRY_H_
#define ADAPTERD_CORE_ADAPTER_BASE_MODEL_GEOMETRY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/adapter/problems.h"

namespace adapterd {

inline constexpr std::string_view kBaseConfigFileName = "config.json";
// Those with the names of 10,000 labels, which kMaxConfigKeys still allows, have 1 MB.
inline constexpr int64_t kMaxBaseConfigBytes = 10'000'000;
// Of any size below: a thousand times the largest vocabulary, and the product of two still fits.
inline constexpr int64_t kMaxGeometrySize = 1'000'000'000;

// Every number is optional: architectures differ in what they have. Sizes that differ from layer to
// layer (a list in the file) are absent.
struct BaseGeometry {
  std::string model_type;       // of the whole model, "gemma3"; empty: no config.json, or not said
  std::string text_model_type;  // of its language model, "gemma3_text"; else the same
  std::optional<int64_t> hidden_size;
  std::optional<int64_t> num_attention_heads;
  std::optional<int64_t> num_key_value_heads;  // as many as attention heads when not said
  std::optional<int64_t> head_dim;
  std::optional<int64_t> vocab_size;
  std::optional<int64_t> num_hidden_layers;
  std::optional<int64_t> intermediate_size;
  std::optional<int64_t> hidden_size_per_layer_input;  // Gemma 3n and 4
  std::optional<bool> tie_word_embeddings;
  std::optional<bool> scale_embedding;  // the Bart family
};

// Reads config.json; keys of a nested text_config win over those beside it. n_embd, n_head, n_layer
// and n_inner are GPT-2's names, d_model is Bart's and T5's. `file` is what problems call it.
// Adds MALFORMED_CONFIG for what is not JSON and for values of the wrong type or size, also NaN and
// infinities; elsewhere these are fine, as Python writes them. nullopt when there was an error.
std::optional<BaseGeometry> ParseBaseGeometry(std::string_view text, const std::string& file,
                                              ProblemList& problems);

// By what the embedding MODULE at `path` multiplies the row that it looks up: PEFT multiplies the
// embedding's delta by the same (peft/tuners/tuners_utils.py, _get_embed_scale). 1 for nearly all.
// nullopt when the config hints at a scale but the architecture is not known, or lacks a size.
//
// Transformers 5 is followed. Until version 4 the models of gemma, gemma2 and vaultgemma scaled
// outside of the module, and until 4.38 those of the Bart family: with these, the module's own
// scale was 1.
std::optional<double> EmbeddingScale(const BaseGeometry& geometry, std::string_view path);

// True for architectures whose c_attn, c_proj and c_fc are transformers' Conv1D, [in, out].
bool IsConv1dArchitecture(const BaseGeometry& geometry);

// True for those whose expert parameters are [experts, in, out]; others have [experts, out, in].
bool HasTransposedExperts(const BaseGeometry& geometry);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_BASE_MODEL_GEOMETRY_H_
