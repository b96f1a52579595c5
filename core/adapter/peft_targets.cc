#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "core/adapter/peft_config_parts.h"

namespace adapterd {
namespace {

using Json = ConfigJson;

std::optional<ModuleNames> Names(ConfigFields& fields, std::string_view key, const Json& value) {
  auto names = fields.Strings(key, value);
  if (!names) return std::nullopt;
  ModuleNames result;
  result.is_pattern = value.is_string();
  if (result.is_pattern) {
    result.pattern = std::move((*names)[0]);
  } else {
    result.names = *std::move(names);
  }
  return result;
}

// False when what is excluded is not known.
bool ReadExcluded(ConfigFields& fields, PeftConfig& config) {
  if (config.method == PeftMethod::kVera) return true;  // which has no such key
  const Json* exclude = fields.Find("exclude_modules");
  if (exclude == nullptr) return true;
  auto names = Names(fields, "exclude_modules", *exclude);
  if (!names) return false;
  config.exclude_modules = *std::move(names);
  return true;
}

bool HasParameters(ConfigFields& fields, const PeftConfig& config) {
  if (config.method == PeftMethod::kVera) return false;
  const Json* parameters = fields.Find("target_parameters");
  return parameters != nullptr && IsTruthy(*parameters);
}

// Null stands for PEFT's list for the type of the base model. PEFT writes the resolved list, and
// inference_mode true, into every adapter that it saves: only the config of a training to come has
// null and false. In any other, and without the key, targets are missing.
std::optional<ModuleNames> NoTargets(ConfigFields& fields, bool is_null) {
  const Json* inference_mode = fields.Find("inference_mode");
  if (!is_null || inference_mode == nullptr || *inference_mode != false) {
    fields.Refuse(Reason::kMalformedConfig, "target_modules",
                  "target_modules is missing: which modules the adapter changes is not known",
                  "a string or a list of strings", is_null ? "null" : "nothing");
    return std::nullopt;
  }
  fields.Warn("target_modules",
              "target_modules is null, as in the config of a training to come, and stands for a "
              "list that depends on the type of the base model: every module that has tensors is "
              "taken as targeted");
  ModuleNames any;
  any.any = true;
  return any;
}

std::optional<ModuleNames> Targets(ConfigFields& fields, const PeftConfig& config) {
  const bool has_parameters = HasParameters(fields, config);
  const Json* targets = fields.FindEvenNull("target_modules");
  if (targets == nullptr || targets->is_null()) {
    return has_parameters ? ModuleNames() : NoTargets(fields, targets != nullptr);
  }
  auto names = Names(fields, "target_modules", *targets);
  if (names && names->empty() && !has_parameters) {
    fields.Malformed("target_modules", "at least one name", *targets);
    return std::nullopt;
  }
  return names;
}

bool IsLayer(const Json& value) {
  return value.is_number_integer() && std::abs(value.get<double>()) < 1e9;
}

void ReadLayerNumbers(ConfigFields& fields, const Json& layers, PeftConfig& config) {
  bool valid = layers.is_array() ? layers.size() <= kMaxConfigNames : IsLayer(layers);
  std::vector<int64_t> numbers;
  for (size_t i = 0; valid && layers.is_array() && i < layers.size(); ++i) {
    valid = IsLayer(layers[i]);
    if (valid) numbers.push_back(layers[i].get<int64_t>());
  }
  if (!valid) {
    fields.Malformed("layers_to_transform", "a whole number or a list of them", layers);
    return config.target_modules.reset();
  }
  if (!layers.is_array()) numbers.push_back(layers.get<int64_t>());
  config.layers_to_transform = std::move(numbers);
}

void ReadLayersPattern(ConfigFields& fields, const Json& value, const Json* layers,
                       PeftConfig& config) {
  auto patterns = fields.Strings("layers_pattern", value);
  if (!patterns) return config.target_modules.reset();
  if (patterns->size() > kMaxLayersPatterns) {
    fields.Malformed("layers_pattern", fmt::format("at most {} patterns", kMaxLayersPatterns),
                     value);
    return config.target_modules.reset();
  }
  config.layers_pattern = *std::move(patterns);
  if (layers == nullptr || !IsTruthy(*layers)) {
    fields.Refuse(Reason::kMalformedConfig, "layers_pattern",
                  "layers_pattern has no meaning without layers_to_transform");
  }
}

void ReadLayers(ConfigFields& fields, PeftConfig& config) {
  const Json* layers = fields.Find("layers_to_transform");
  const Json* patterns = fields.Find("layers_pattern");
  const Json* targets = fields.Find("target_modules");
  const bool by_pattern = targets != nullptr && targets->is_string();
  for (const auto& [key, value] :
       {std::pair("layers_to_transform", layers), std::pair("layers_pattern", patterns)}) {
    if (value == nullptr || !by_pattern) continue;
    fields.Refuse(Reason::kMalformedConfig, key,
                  fmt::format("{} has no meaning when target_modules is a string", key));
  }
  if (layers != nullptr) ReadLayerNumbers(fields, *layers, config);
  if (patterns != nullptr && IsTruthy(*patterns)) {
    ReadLayersPattern(fields, *patterns, layers, config);
  }
}

}  // namespace

void ReadPeftTargets(ConfigFields& fields, PeftConfig& config) {
  const bool exclude_is_known = ReadExcluded(fields, config);
  auto targets = Targets(fields, config);
  if (exclude_is_known) config.target_modules = std::move(targets);
  ReadLayers(fields, config);
}

}  // namespace adapterd
