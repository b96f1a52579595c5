#include "core/adapter/model_shapes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "core/adapter/base_model_geometry.h"
#include "core/adapter/made_adapter.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// One side of a matrix, in terms of the geometry.
enum class Width { kHidden, kIntermediate, kTwoIntermediate, kQuery, kKeyValue, kFused, kVocab };

struct Target {
  std::string_view name;
  Width in;
  Width out;
  std::string_view path;  // template
  ModuleKind kind = ModuleKind::kLinear;
};

constexpr std::string_view kAttention = "model.layers.{layer}.self_attn.{target}";
constexpr std::string_view kMlp = "model.layers.{layer}.mlp.{target}";

// Names of transformers' Llama and of those that follow it.
constexpr Target kTargets[] = {
    {"q_proj", Width::kHidden, Width::kQuery, kAttention},
    {"k_proj", Width::kHidden, Width::kKeyValue, kAttention},
    {"v_proj", Width::kHidden, Width::kKeyValue, kAttention},
    {"o_proj", Width::kQuery, Width::kHidden, kAttention},
    {"qkv_proj", Width::kHidden, Width::kFused, kAttention},
    {"gate_proj", Width::kHidden, Width::kIntermediate, kMlp},
    {"up_proj", Width::kHidden, Width::kIntermediate, kMlp},
    {"down_proj", Width::kIntermediate, Width::kHidden, kMlp},
    {"gate_up_proj", Width::kHidden, Width::kTwoIntermediate, kMlp},
    {"embed_tokens", Width::kVocab, Width::kHidden, "model.{target}", ModuleKind::kEmbedding},
    {"lm_head", Width::kHidden, Width::kVocab, "{target}"},
};

Error Invalid(const std::string& field, const std::string& what) {
  return Error(Reason::kInvalidField, field + ": " + what).With("field", field);
}

absl::StatusOr<const Target*> FindTarget(const std::string& name, const std::string& field) {
  std::vector<std::string_view> known;
  for (const Target& target : kTargets) {
    if (target.name == name) return &target;
    known.push_back(target.name);
  }
  return Invalid(field,
                 fmt::format("expected one of {}, found {}", fmt::join(known, ", "), Quoted(name)));
}

absl::Status CheckSize(std::string_view name, int64_t size, int64_t least) {
  if (size >= least && size <= kMaxGeometrySize) return absl::OkStatus();
  return Invalid(fmt::format("geometry.{}", name),
                 fmt::format("expected {} to {}, found {}", least, kMaxGeometrySize, size));
}

absl::Status CheckNoneNegative(const ModelGeometry& geometry) {
  RETURN_IF_ERROR(CheckSize("hidden_size", geometry.hidden_size, 0));
  RETURN_IF_ERROR(CheckSize("intermediate_size", geometry.intermediate_size, 0));
  RETURN_IF_ERROR(CheckSize("num_layers", geometry.num_layers, 0));
  RETURN_IF_ERROR(CheckSize("num_attention_heads", geometry.num_attention_heads, 0));
  RETURN_IF_ERROR(CheckSize("num_key_value_heads", geometry.num_key_value_heads, 0));
  RETURN_IF_ERROR(CheckSize("head_dim", geometry.head_dim.value_or(0), 0));
  return CheckSize("vocab_size", geometry.vocab_size.value_or(0), 0);
}

// Computes sizes from those of the geometry that a target needs, and no others.
class Shapes {
 public:
  Shapes(const ModelGeometry& geometry, ZeroSizes zero_sizes)
      : geometry_(geometry), least_(zero_sizes == ZeroSizes::kAllowed ? 0 : 1) {}

  absl::StatusOr<int64_t> Layers() const { return Needed("num_layers", geometry_.num_layers); }

  absl::StatusOr<int64_t> Of(Width width) const {
    switch (width) {
      case Width::kHidden:
        return Needed("hidden_size", geometry_.hidden_size);
      case Width::kIntermediate:
        return Needed("intermediate_size", geometry_.intermediate_size);
      case Width::kTwoIntermediate: {
        ASSIGN_OR_RETURN(const int64_t one, Of(Width::kIntermediate));
        return 2 * one;
      }
      case Width::kVocab:
        if (!geometry_.vocab_size) {
          return Invalid("geometry.vocab_size",
                         "expected one for embed_tokens and lm_head, found none");
        }
        return Needed("vocab_size", *geometry_.vocab_size);
      default:
        return OfHeads(width);
    }
  }

 private:
  absl::StatusOr<int64_t> Needed(std::string_view name, int64_t size) const {
    RETURN_IF_ERROR(CheckSize(name, size, least_));
    return size;
  }

  absl::StatusOr<int64_t> HeadDim(int64_t heads) const {
    if (geometry_.head_dim) return Needed("head_dim", *geometry_.head_dim);
    ASSIGN_OR_RETURN(const int64_t hidden, Of(Width::kHidden));
    if (heads == 0) return 0;
    if (hidden % heads == 0) return hidden / heads;
    return Invalid(
        "geometry.head_dim",
        fmt::format("expected one, because {} attention heads do not divide a hidden_size "
                    "of {}, found none",
                    heads, hidden));
  }

  // Of queries, of keys (or values), or of all three next to each other.
  absl::StatusOr<int64_t> OfHeads(Width width) const {
    ASSIGN_OR_RETURN(const int64_t heads,
                     Needed("num_attention_heads", geometry_.num_attention_heads));
    ASSIGN_OR_RETURN(const int64_t head_dim, HeadDim(heads));
    const int64_t kv_heads =
        geometry_.num_key_value_heads == 0 ? heads : geometry_.num_key_value_heads;
    if (heads > 0 && heads % kv_heads != 0) {
      return Invalid(
          "geometry.num_key_value_heads",
          fmt::format("expected a divisor of the {} attention heads, found {}", heads, kv_heads));
    }
    const int64_t of_heads = width == Width::kQuery      ? heads
                             : width == Width::kKeyValue ? kv_heads
                                                         : heads + 2 * kv_heads;
    const int64_t features = of_heads * head_dim;  // at most 3e9 x 1e9: no overflow
    RETURN_IF_ERROR(CheckSize("num_attention_heads", features, least_));
    return features;
  }

  const ModelGeometry& geometry_;
  const int64_t least_;
};

// `pattern` with every `key` replaced by `value`.
std::string Filled(std::string pattern, std::string_view key, std::string_view value) {
  for (size_t at = 0; (at = pattern.find(key, at)) != std::string::npos; at += value.size()) {
    pattern.replace(at, key.size(), value);
  }
  return pattern;
}

absl::Status CheckTemplates(const ModelGeometry& geometry) {
  for (const auto& [name, pattern] : geometry.path_templates) {
    RETURN_IF_ERROR(FindTarget(name, "geometry.path_templates").status());
    const std::string rest = Filled(Filled(pattern, "{layer}", ""), "{target}", "");
    if (rest.find_first_of("{}") == std::string::npos) continue;
    return Invalid(
        "geometry.path_templates",
        fmt::format("expected no braces but {{layer}} and {{target}}, found {}", Quoted(pattern)));
  }
  return absl::OkStatus();
}

// One module a layer, or one in all where the default path names no layer and the given one, if
// any, does not either.
absl::Status AddModules(const ModelGeometry& geometry, const Shapes& shapes, const Target& target,
                        std::vector<ModuleInfo>& modules) {
  const auto given = geometry.path_templates.find(std::string(target.name));
  const std::string pattern =
      Filled(given == geometry.path_templates.end() ? std::string(target.path) : given->second,
             "{target}", target.name);
  ModuleInfo module;
  module.kind = target.kind;
  ASSIGN_OR_RETURN(module.in_features, shapes.Of(target.in));
  ASSIGN_OR_RETURN(module.out_features, shapes.Of(target.out));
  int64_t layers = 1;
  const bool is_layered = target.path.find("{layer}") != std::string_view::npos ||
                          pattern.find("{layer}") != std::string::npos;
  if (is_layered) {
    ASSIGN_OR_RETURN(layers, shapes.Layers());
  }
  if (layers > static_cast<int64_t>(kMaxMadeModules - modules.size())) {
    return Invalid("geometry.num_layers",
                   fmt::format("expected at most {} modules in all, found more", kMaxMadeModules));
  }
  for (int64_t layer = 0; layer < layers; ++layer) {
    module.path = Filled(pattern, "{layer}", std::to_string(layer));
    RETURN_IF_ERROR(CheckModulePath(module.path, "geometry.path_templates"));
    modules.push_back(module);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<ModuleInfo>> ModulesOf(const ModelGeometry& geometry,
                                                  const std::vector<std::string>& targets,
                                                  ZeroSizes zero_sizes) {
  RETURN_IF_ERROR(CheckNoneNegative(geometry));
  RETURN_IF_ERROR(CheckTemplates(geometry));
  if (targets.empty()) return Invalid("target_modules", "expected at least one, found none");
  const Shapes shapes(geometry, zero_sizes);
  std::vector<ModuleInfo> modules;
  std::set<std::string> seen;
  for (size_t i = 0; i < targets.size(); ++i) {
    const std::string field = fmt::format("target_modules[{}]", i);
    ASSIGN_OR_RETURN(const Target* target, FindTarget(targets[i], field));
    if (!seen.insert(targets[i]).second) {
      return Invalid(field,
                     fmt::format("expected each target once, found {} again", Quoted(targets[i])));
    }
    RETURN_IF_ERROR(AddModules(geometry, shapes, *target, modules));
  }
  const auto by_path = [](const ModuleInfo& x, const ModuleInfo& y) { return x.path < y.path; };
  std::sort(modules.begin(), modules.end(), by_path);
  const auto twice =
      std::adjacent_find(modules.begin(), modules.end(),
                         [](const ModuleInfo& x, const ModuleInfo& y) { return x.path == y.path; });
  if (twice == modules.end()) return modules;
  return Invalid("geometry.path_templates",
                 fmt::format("expected a path of its own for each module, found {} twice",
                             Quoted(twice->path)));
}

}  // namespace adapterd
