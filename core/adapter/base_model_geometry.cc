#include "core/adapter/base_model_geometry.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "core/adapter/config_fields.h"
#include "core/adapter/config_json.h"
#include "core/adapter/module_index.h"

namespace adapterd {
namespace {

using Names = std::initializer_list<std::string_view>;

bool IsOneOf(std::string_view name, Names names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Python writes NaN and infinities bare, as in "time_step_limit": [0.0, Infinity] of Mamba. As
// strings they are JSON, and still of the wrong type wherever a number is read.
std::string QuoteNonFinite(std::string_view text) {
  std::string quoted;
  quoted.reserve(text.size());
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const std::string_view rest = text.substr(i);
    if (!in_string) {
      std::string_view word;
      for (const std::string_view candidate : {"-Infinity", "Infinity", "NaN"}) {
        if (word.empty() && rest.starts_with(candidate)) word = candidate;
      }
      if (!word.empty()) {
        quoted.append(1, '"').append(word).append(1, '"');
        i += word.size() - 1;
        continue;
      }
    }
    quoted.push_back(text[i]);
    if (in_string && text[i] == '\\' && i + 1 < text.size()) {
      quoted.push_back(text[++i]);
    } else if (text[i] == '"') {
      in_string = !in_string;
    }
  }
  return quoted;
}

// One value for all layers, or a list with one for each.
std::optional<int64_t> ReadSize(ConfigFields& fields, Names names, int64_t least) {
  for (const std::string_view name : names) {
    const ConfigJson* value = fields.Find(name);
    if (value == nullptr) continue;
    if (!value->is_array()) return fields.Integer(name, *value, least, kMaxGeometrySize);
    std::optional<int64_t> common;
    for (const ConfigJson& element : *value) {
      const auto size = fields.Integer(name, element, least, kMaxGeometrySize);
      if (!size || (common && *common != *size)) return std::nullopt;
      common = size;
    }
    return common;
  }
  return std::nullopt;
}

std::optional<bool> ReadBool(ConfigFields& fields, std::string_view name) {
  const ConfigJson* value = fields.Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  fields.Malformed(name, "true, false or null", *value);
  return std::nullopt;
}

BaseGeometry ReadFields(ConfigFields& fields) {
  BaseGeometry geometry;
  geometry.model_type = fields.String("model_type");
  geometry.text_model_type = geometry.model_type;
  geometry.hidden_size = ReadSize(fields, {"hidden_size", "d_model", "n_embd"}, 1);
  geometry.num_attention_heads = ReadSize(fields, {"num_attention_heads", "n_head"}, 1);
  geometry.num_key_value_heads = ReadSize(fields, {"num_key_value_heads"}, 1);
  if (!geometry.num_key_value_heads && fields.Find("num_key_value_heads") == nullptr) {
    geometry.num_key_value_heads = geometry.num_attention_heads;
  }
  geometry.head_dim = ReadSize(fields, {"head_dim"}, 1);
  geometry.vocab_size = ReadSize(fields, {"vocab_size"}, 0);
  geometry.num_hidden_layers = ReadSize(fields, {"num_hidden_layers", "n_layer"}, 0);
  geometry.intermediate_size = ReadSize(fields, {"intermediate_size", "n_inner"}, 0);
  geometry.hidden_size_per_layer_input = ReadSize(fields, {"hidden_size_per_layer_input"}, 0);
  geometry.tie_word_embeddings = ReadBool(fields, "tie_word_embeddings");
  geometry.scale_embedding = ReadBool(fields, "scale_embedding");
  return geometry;
}

// `text` completed by what only stands beside it.
BaseGeometry Combine(BaseGeometry text, const BaseGeometry& whole) {
  const auto fill = [](auto& value, const auto& other) {
    if (!value) value = other;
  };
  // With heads of its own, the nested config has told its key-value heads, too.
  if (!text.num_attention_heads) text.num_key_value_heads = whole.num_key_value_heads;
  fill(text.hidden_size, whole.hidden_size);
  fill(text.num_attention_heads, whole.num_attention_heads);
  fill(text.head_dim, whole.head_dim);
  fill(text.vocab_size, whole.vocab_size);
  fill(text.num_hidden_layers, whole.num_hidden_layers);
  fill(text.intermediate_size, whole.intermediate_size);
  fill(text.hidden_size_per_layer_input, whole.hidden_size_per_layer_input);
  fill(text.scale_embedding, whole.scale_embedding);
  // The head belongs to the whole model.
  if (whole.tie_word_embeddings) text.tie_word_embeddings = whole.tie_word_embeddings;
  if (text.text_model_type.empty()) text.text_model_type = whole.model_type;
  text.model_type = whole.model_type;
  return text;
}

// sqrt(size), nullopt without a size.
std::optional<double> RootOf(std::optional<int64_t> size) {
  if (!size || *size == 0) return std::nullopt;
  return std::sqrt(static_cast<double>(*size));
}

std::optional<double> GemmaScale(const BaseGeometry& geometry, std::string_view target) {
  if (target == "embed_tokens") return RootOf(geometry.hidden_size);
  if (target == "embed_tokens_per_layer") return RootOf(geometry.hidden_size_per_layer_input);
  return 1;
}

}  // namespace

std::optional<BaseGeometry> ParseBaseGeometry(std::string_view text, const std::string& file,
                                              ProblemList& problems) {
  const auto json = ParseConfigJson(QuoteNonFinite(text));
  if (!json.ok()) {
    const absl::string_view why = json.status().message();
    problems.Add(Error(Reason::kMalformedConfig, fmt::format("{}: {}", file, std::string{why}))
                     .With("file", file));
    return std::nullopt;
  }
  ProblemList found;
  ConfigFields fields(*json, file, found);
  BaseGeometry geometry = ReadFields(fields);
  if (const ConfigJson* nested = fields.Find("text_config")) {
    if (nested->is_object()) {
      ConfigFields text_fields(*nested, file, found);
      geometry = Combine(ReadFields(text_fields), geometry);
    } else {
      fields.Malformed("text_config", "an object or null", *nested);
    }
  }
  for (const Problem& problem : found.items()) problems.Add(problem);
  if (found.has_errors()) return std::nullopt;
  return geometry;
}

std::optional<double> EmbeddingScale(const BaseGeometry& geometry, std::string_view path) {
  const std::string_view type = geometry.text_model_type;
  const std::string_view target = TargetOf(path);
  // *ScaledWordEmbedding(..., embed_scale=config.hidden_size**0.5) in transformers' modeling files.
  if (IsOneOf(type, {"gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text",
                     "gemma4", "gemma4_text", "vaultgemma"})) {
    return GemmaScale(geometry, target);
  }
  // *ScaledWordEmbedding with sqrt(d_model) if scale_embedding; by their configurations' defaults.
  const bool scaled_unless_said = IsOneOf(
      type, {"m2m_100", "nllb-moe", "plbart", "bigbird_pegasus", "pegasus_x", "biogpt", "xglm"});
  if (scaled_unless_said || IsOneOf(type, {"bart", "mbart"})) {
    const bool scaled = geometry.scale_embedding.value_or(scaled_unless_said);
    if (!scaled || !IsOneOf(target, {"shared", "embed_tokens"})) return 1;
    return RootOf(geometry.hidden_size);
  }
  // These scale outside of the module.
  if (IsOneOf(type, {"t5gemma", "recurrent_gemma", "marian", "pegasus", "fsmt", "whisper",
                     "speech_to_text"})) {
    return 1;
  }
  const bool maybe_scaled =
      geometry.scale_embedding.value_or(false) || type.find("gemma") != std::string_view::npos;
  if (maybe_scaled) return std::nullopt;
  return 1;
}

bool IsConv1dArchitecture(const BaseGeometry& geometry) {
  return IsOneOf(geometry.text_model_type,
                 {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"});
}

bool HasTransposedExperts(const BaseGeometry& geometry) {
  return IsOneOf(geometry.text_model_type, {"gpt_oss", "llama4", "llama4_text"});
}

}  // namespace adapterd
