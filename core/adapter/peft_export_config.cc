#include "core/adapter/peft_export_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/adapter/peft_experts.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

using Json = nlohmann::json;

// The first version whose expert factors always work on the inputs: see ExpertsAreSwapped.
constexpr char kPeftVersion[] = "0.19.1";

// alpha such that PEFT computes the module's scale from it.
double AlphaOf(const ModuleInfo& module, bool use_rslora) {
  const auto rank = static_cast<double>(module.rank);
  const double divisor = use_rslora ? std::sqrt(rank) : rank;
  return module.alpha / divisor == module.scale ? module.alpha : module.scale * divisor;
}

// JSON has no difference between 16 and 16.0, but PEFT writes whole alphas as integers.
Json Number(double value) {
  const bool whole = value == std::floor(value) && std::abs(value) < 1e15;
  return whole ? Json(static_cast<int64_t>(value)) : Json(value);
}

// Matches this path and nothing else, also with PEFT's "(.*\.)?(" before it and ")$" behind.
std::string AnchoredPattern(std::string_view path) {
  std::string pattern = "^";
  for (const char c : path) {
    if (std::string_view(R"(\.^$*+?{}[]()|-)").find(c) != std::string_view::npos) {
      pattern.push_back('\\');
    }
    pattern.push_back(c);
  }
  return pattern;
}

template <typename Value>
Value MostFrequent(const std::vector<Value>& values, Value fallback) {
  std::map<Value, size_t> counts;
  for (const Value& value : values) ++counts[value];
  size_t most = 0;
  for (const auto& [value, count] : counts) {
    if (count <= most) continue;
    most = count;
    fallback = value;
  }
  return fallback;
}

void AddScaling(const AdapterManifest& manifest, Json& config) {
  const bool use_rslora = manifest.peft.use_rslora;
  std::vector<int64_t> ranks;
  std::vector<double> alphas;
  for (const ModuleInfo& module : manifest.modules) {
    if (module.pairs() == 0) continue;
    ranks.push_back(module.rank);
    alphas.push_back(AlphaOf(module, use_rslora));
  }
  const int64_t r = MostFrequent<int64_t>(ranks, 8);
  const double alpha = MostFrequent<double>(alphas, 8);
  config["r"] = r;
  config["lora_alpha"] = Number(alpha);
  config["use_rslora"] = use_rslora;
  config["rank_pattern"] = Json::object();
  config["alpha_pattern"] = Json::object();
  for (const ModuleInfo& module : manifest.modules) {
    if (module.pairs() == 0) continue;
    const bool is_router = module.kind == ModuleKind::kLinear && !module.parameter.empty();
    const std::string key = AnchoredPattern(is_router ? module.path + ".weight" : module.path);
    if (module.rank != r) config["rank_pattern"][key] = module.rank;
    const double own = AlphaOf(module, use_rslora);
    if (own != alpha) config["alpha_pattern"][key] = Number(own);
  }
}

void AddTargets(const AdapterManifest& manifest, Json& config) {
  std::vector<std::string> modules;
  std::vector<std::string> parameters;
  bool dora = false;
  bool lora_bias = false;
  for (const ModuleInfo& module : manifest.modules) {
    if (module.pairs() == 0) continue;
    dora |= module.has_magnitude;
    lora_bias |= module.has_lora_bias;
    if (module.parameter.empty()) {
      modules.push_back(module.path);
    } else {
      parameters.push_back(fmt::format("{}.{}", OwnerOf(module), module.parameter));
    }
  }
  config["use_dora"] = dora;
  config["lora_bias"] = lora_bias;
  config["target_modules"] = modules;  // sorted, as the manifest is
  config["target_parameters"] = parameters.empty() ? Json() : Json(parameters);
}

Json TokensOf(const TrainedTokens& tokens) {
  if (tokens.layers.empty()) return nullptr;
  if (tokens.of_input_embedding) return tokens.layers[0].second;
  Json json = Json::object();
  for (const auto& [name, ids] : tokens.layers) json[name] = ids;
  return json;
}

std::string_view BiasName(PeftBias bias) {
  switch (bias) {
    case PeftBias::kAll:
      return "all";
    case PeftBias::kLoraOnly:
      return "lora_only";
    default:
      return "none";
  }
}

void AddTraits(const AdapterManifest& manifest, Json& config) {
  const PeftTraits& traits = manifest.peft;
  config["task_type"] = traits.task_type.empty() ? Json() : Json(traits.task_type);
  config["fan_in_fan_out"] = traits.fan_in_fan_out;
  config["bias"] = BiasName(traits.bias);
  config["modules_to_save"] =
      traits.modules_to_save.empty() ? Json() : Json(traits.modules_to_save);
  config["trainable_token_indices"] = TokensOf(traits.trained_tokens);
  config["layer_replication"] =
      traits.layer_replication.empty() ? Json() : Json(traits.layer_replication);
}

// How many wrappers lie around the parameter's: one for each that is registered after it.
size_t WrappersAround(const AdapterManifest& manifest, const ModuleInfo& module) {
  size_t wrappers = 0;
  for (const ModuleInfo& other : manifest.modules) {
    if (other.pairs() == 0 || other.parameter.empty() || other.path == module.path) continue;
    const bool same_owner = OwnerOf(other) == OwnerOf(module);
    if (same_owner && IsRegisteredBefore(module.parameter, other.parameter)) ++wrappers;
  }
  return wrappers;
}

bool HasPair(const AdapterManifest& manifest, size_t module) {
  return manifest.modules[module].pairs() > 0 ||
         (module > 0 && manifest.modules[module - 1].pairs() > 0 &&
          manifest.modules[module - 1].path == manifest.modules[module].path);
}

// What other formats have and PEFT has no form for.
absl::Status CheckExpressible(const AdapterManifest& manifest) {
  bool has_pair = false;
  for (const ModuleInfo& module : manifest.modules) {
    has_pair |= module.pairs() > 0;
    if (module.kind != ModuleKind::kExperts || !module.parameter.empty()) continue;
    return Error(Reason::kUnsupportedAdapter,
                 fmt::format("module {} stacks its experts in its own weight, for which PEFT has "
                             "no names",
                             Quoted(module.path)))
        .With("module", module.path);
  }
  if (has_pair || manifest.format == AdapterFormat::kPeft) return absl::OkStatus();
  return Error(Reason::kUnsupportedAdapter,
               "the adapter has no pairs but whole weights, which are no adapter of PEFT's");
}

}  // namespace

absl::StatusOr<std::string> MakePeftConfig(const AdapterManifest& manifest) {
  RETURN_IF_ERROR(CheckExpressible(manifest));
  Json config = {{"auto_mapping", nullptr},      {"inference_mode", true},
                 {"init_lora_weights", true},    {"peft_type", "LORA"},
                 {"peft_version", kPeftVersion}, {"revision", nullptr}};
  config["base_model_name_or_path"] =
      manifest.base_model.empty() ? Json() : Json(manifest.base_model);
  config["lora_dropout"] = manifest.lora_dropout;
  AddScaling(manifest, config);
  AddTargets(manifest, config);
  AddTraits(manifest, config);
  try {
    return config.dump(2);
  } catch (const std::exception&) {
    return Error(Reason::kInvalidField, "the adapter has a name that is not UTF-8");
  }
}

std::string_view OwnerOf(const ModuleInfo& module) {
  const std::string_view path = module.path;
  const bool in_path = module.kind == ModuleKind::kExperts;
  return in_path ? path.substr(0, path.size() - module.parameter.size() - 1) : path;
}

std::string PeftTensorName(const AdapterManifest& manifest, size_t module, TensorRole role) {
  const ModuleInfo& info = manifest.modules[module];
  std::string name = fmt::format("base_model.model.{}", OwnerOf(info));
  const bool is_factor = role == TensorRole::kLoraA || role == TensorRole::kLoraB;
  if (is_factor && !info.parameter.empty()) {
    for (size_t i = 0; i < WrappersAround(manifest, info); ++i) name += ".base_layer";
  }
  switch (role) {
    case TensorRole::kLoraA:
      return name + (info.kind == ModuleKind::kEmbedding ? ".lora_embedding_A" : ".lora_A.weight");
    case TensorRole::kLoraB:
      return name + (info.kind == ModuleKind::kEmbedding ? ".lora_embedding_B" : ".lora_B.weight");
    case TensorRole::kLoraBias:
      return name + ".lora_B.bias";
    case TensorRole::kMagnitude:
      return name + ".lora_magnitude_vector";
    case TensorRole::kBias:
      return name + (HasPair(manifest, module) ? ".base_layer.bias" : ".bias");
    default:
      if (!info.token_ids.empty()) return name + ".token_adapter.trainable_tokens_delta";
      if (!info.parameter.empty()) return name;
      return name + (HasPair(manifest, module) ? ".base_layer.weight" : ".weight");
  }
}

}  // namespace adapterd
