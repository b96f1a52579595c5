#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "core/adapter/peft_config_parts.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

using Json = ConfigJson;

constexpr std::string_view kUnconverted =
    "trained against a changed base weight, which the file does not hold: save it again with "
    "save_pretrained(path_initial_model_for_weight_conversion=...), which makes it a plain LoRA";
constexpr std::string_view kQuantizedBase =
    "trained against a base weight that was quantised and dequantised, which the file does not "
    "hold: merge it into that base with PEFT";

// Which initialisations leave the base model alone: lora/layer.py, update_layer. PEFT reads strings
// in lower case.
void ReadLoraInit(ConfigFields& fields) {
  const Json* init = fields.Find("init_lora_weights");
  if (init == nullptr || init->is_boolean()) return;
  if (!init->is_string()) {
    return fields.Malformed("init_lora_weights", "true, false or a string", *init);
  }
  const std::string value = absl::AsciiStrToLower(init->get<std::string>());
  for (const std::string_view harmless : {"true", "gaussian", "orthogonal", "eva", "mica"}) {
    if (value == harmless) return;
  }
  // A converted LoRA-GA says true, as all that were converted.
  const bool convertible = value == "olora" || value == "lora_ga" || value.starts_with("pissa") ||
                           value.starts_with("corda");
  fields.Unsupported("init_lora_weights", fmt::format("init_lora_weights {} {}", Shown(*init),
                                                      convertible        ? kUnconverted
                                                      : value == "loftq" ? kQuantizedBase
                                                                         : "is not known"));
}

// AdaLoRA has one initialisation, which PEFT runs for any value but false.
void ReadAdaLoraInit(ConfigFields& fields) {
  const Json* init = fields.Find("init_lora_weights");
  if (init == nullptr || init->is_boolean()) return;
  fields.Malformed("init_lora_weights", "true or false", *init);
}

void ReadBias(ConfigFields& fields, PeftConfig& config) {
  const Json* bias = fields.Find("bias");
  if (bias == nullptr) return;
  if (!bias->is_string()) return fields.Malformed("bias", "a string", *bias);
  const std::string value = bias->get<std::string>();
  if (value == "none") return;
  const bool vera = config.method == PeftMethod::kVera;
  if (vera && (value == "all" || value == "vera_only")) {
    return fields.Unsupported(
        "bias", fmt::format("bias {} trains biases, which PEFT does not save for VERA: the file is "
                            "not the whole adapter",
                            Shown(*bias)));
  }
  if (!vera && value == "all") {
    config.bias = PeftBias::kAll;
  } else if (!vera && value == "lora_only") {
    config.bias = PeftBias::kLoraOnly;
  } else {
    fields.Unsupported("bias", fmt::format("bias {} is not known", Shown(*bias)));
  }
}

bool HasDuplicates(std::vector<int64_t> numbers) {
  std::sort(numbers.begin(), numbers.end());
  return std::adjacent_find(numbers.begin(), numbers.end()) != numbers.end();
}

void ReadTokensOf(ConfigFields& fields, std::string_view key, std::string_view layer,
                  const Json& value, TrainedTokens& tokens, size_t& left) {
  auto ids = fields.Integers(key, value, 0, kMaxTokenId, left);
  if (!ids) return;
  left -= ids->size();
  if (HasDuplicates(*ids)) {
    return fields.Refuse(
        Reason::kMalformedConfig, key,
        fmt::format("{} names a token twice: which of its rows counts is not known",
                    Printable(key)));
  }
  tokens.layers.emplace_back(layer, *std::move(ids));
}

TrainedTokens ReadTrainedTokens(ConfigFields& fields) {
  constexpr std::string_view kKey = "trainable_token_indices";
  TrainedTokens tokens;
  const Json* value = fields.Find(kKey);
  size_t left = kMaxTrainedTokens;
  if (value == nullptr || (value->is_structured() && value->empty())) return tokens;
  if (value->is_array()) {
    tokens.of_input_embedding = true;
    ReadTokensOf(fields, kKey, "embed_tokens", *value, tokens, left);
  } else if (value->is_object()) {
    for (const auto& [layer, ids] : value->items()) {
      ReadTokensOf(fields, fmt::format("{}.{}", kKey, layer), layer, ids, tokens, left);
    }
  } else {
    fields.Malformed(kKey, "null, a list of token ids, or an object of such lists", *value);
  }
  return tokens;
}

void ReadReplication(ConfigFields& fields, PeftConfig& config) {
  const Json* value = fields.Find("layer_replication");
  if (value == nullptr) return;
  std::vector<std::pair<int64_t, int64_t>> ranges;
  int64_t layers = 0;
  bool valid = value->is_array();
  for (size_t i = 0; valid && i < value->size(); ++i) {
    const Json& range = (*value)[i];
    valid = range.is_array() && range.size() == 2 && range[0].is_number_integer() &&
            range[1].is_number_integer();
    if (!valid) break;
    const auto start = range[0].get<double>();
    const auto end = range[1].get<double>();
    valid = start >= 0 && start < end && end <= static_cast<double>(kMaxReplicatedLayers);
    if (!valid) break;
    ranges.emplace_back(range[0].get<int64_t>(), range[1].get<int64_t>());
    layers += ranges.back().second - ranges.back().first;
    valid = layers <= kMaxReplicatedLayers;
  }
  if (valid) {
    config.layer_replication = std::move(ranges);
  } else {
    fields.Malformed("layer_replication",
                     fmt::format("a list of [start, end] with 0 <= start < end, of at most {} "
                                 "layers together",
                                 kMaxReplicatedLayers),
                     *value);
  }
}

// PEFT's BdLoraConfig.
void ReadBlockDiagonals(ConfigFields& fields, PeftConfig& config) {
  const Json* value = fields.Find("use_bdlora");
  if (value == nullptr || !IsTruthy(*value)) return;
  if (!value->is_object()) return fields.Malformed("use_bdlora", "null or an object", *value);
  if (config.use_dora || config.lora_bias) {
    return fields.Unsupported("use_bdlora",
                              "use_bdlora is set together with use_dora or "
                              "lora_bias, which is not supported");
  }
  BlockDiagonals blocks;
  for (const auto& [key, entry] : value->items()) {
    const std::string field = fmt::format("use_bdlora.{}", key);
    if (key == "target_modules_bd_a" || key == "target_modules_bd_b") {
      auto& names = key.back() == 'a' ? blocks.of_a : blocks.of_b;
      if (!entry.is_null()) names = fields.Strings(field, entry).value_or(names);
    } else if (key == "nblocks") {
      blocks.blocks = fields.Integer(field, entry, 1, kMaxRank).value_or(1);
    } else if (key == "match_strict" && entry.is_boolean()) {
      blocks.match_strict = entry.get<bool>();
    } else if (key == "match_strict") {
      fields.Malformed(field, "true or false", entry);
    } else if (IsTruthy(entry)) {
      fields.Unsupported(field, fmt::format("{} is not known and set to {}: it may change the "
                                            "result",
                                            Quoted(field), Shown(entry)));
    }
  }
  config.block_diagonals = std::move(blocks);
}

void Forbid(ConfigFields& fields, std::string_view key, std::string_view other) {
  fields.Refuse(
      Reason::kMalformedConfig, key,
      fmt::format("{} does not go with {}: PEFT neither trains nor loads the two together", key,
                  other));
}

// lora/config.py, __post_init__; lora/layer.py, ParamWrapper.
void CheckLoraCombinations(ConfigFields& fields, const PeftConfig& config) {
  const Json* init = fields.Find("init_lora_weights");
  const Json* megatron = fields.Find("megatron_config");
  const bool has_parameters = !config.target_parameters.empty();
  if (config.lora_bias && config.use_dora) Forbid(fields, "lora_bias", "use_dora");
  if (config.lora_bias && init != nullptr && init->is_string()) {
    Forbid(fields, "lora_bias", "an init_lora_weights other than true or false");
  }
  if (config.use_dora && megatron != nullptr && IsTruthy(*megatron)) {
    Forbid(fields, "use_dora", "megatron_config");
  }
  if (!has_parameters) return;
  if (config.lora_dropout != 0) Forbid(fields, "lora_dropout", "target_parameters");
  if (config.lora_bias) Forbid(fields, "lora_bias", "target_parameters");
  if (config.use_dora) Forbid(fields, "use_dora", "target_parameters");
}

void ReadLoraExtras(ConfigFields& fields, PeftConfig& config) {
  ReadLoraInit(fields);
  config.use_dora = fields.Bool("use_dora");
  config.lora_bias = fields.Bool("lora_bias");
  config.target_parameters = fields.Names("target_parameters");
  CheckLoraCombinations(fields, config);
  ReadBlockDiagonals(fields, config);
}

void ReadAdaLoraExtras(ConfigFields& fields) {
  ReadAdaLoraInit(fields);
  for (const std::string_view key : {"use_dora", "lora_bias", "target_parameters", "use_bdlora"}) {
    const Json* value = fields.Find(key);
    if (value == nullptr || !IsTruthy(*value)) continue;
    fields.Unsupported(key, fmt::format("{} is set, which AdaLoRA does not have", key));
  }
}

void RefuseSwitches(ConfigFields& fields) {
  for (const auto& [key, why] : RefusedSwitches()) {
    const Json* value = fields.Find(key);
    if (value == nullptr || !IsTruthy(*value)) continue;
    fields.Unsupported(key, fmt::format("{} is set, which is not supported: {}", key, why));
  }
}

}  // namespace

void ReadPeftExtras(ConfigFields& fields, PeftConfig& config) {
  ReadBias(fields, config);
  config.modules_to_save = fields.Names("modules_to_save");
  if (config.method == PeftMethod::kVera) return;
  if (config.method == PeftMethod::kLora) {
    ReadLoraExtras(fields, config);
  } else {
    ReadAdaLoraExtras(fields);
  }
  config.trained_tokens = ReadTrainedTokens(fields);
  ReadReplication(fields, config);
  RefuseSwitches(fields);
}

}  // namespace adapterd
