#include "core/adapter/peft_config.h"

#include <fmt/format.h>

#include <cmath>

#include "absl/strings/ascii.h"
#include "core/adapter/config_fields.h"
#include "core/adapter/config_json.h"
#include "core/base/error.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

using Json = ConfigJson;

// Switches that change the arithmetic, or name tensors, in ways that are not implemented.
struct UnsupportedKey {
  std::string_view key;
  std::string_view what;
};
constexpr UnsupportedKey kUnsupportedKeys[] = {
    {"use_dora", "DoRA"},
    {"lora_bias", "a bias on B"},
    {"modules_to_save", "replacing whole modules"},
    {"trainable_token_indices", "replacing rows of an embedding"},
    {"target_parameters", "LoRA on parameters (experts)"},
    {"alora_invocation_tokens", "activated LoRA"},
    {"use_qalora", "QA-LoRA"},
    {"arrow_config", "Arrow routing"},
    {"use_bdlora", "block-diagonal LoRA"},
    {"kasa_config", "KaSA"},
};

// Keys without a say in the arithmetic of a trained adapter: names, training, initialisation (whose
// outcome init_lora_weights decides), and layer_replication, whose layers the tensors name already.
constexpr std::string_view kInformationalKeys[] = {
    "auto_mapping",      "revision",          "inference_mode",      "fan_in_fan_out",
    "loftq_config",      "eva_config",        "corda_config",        "lora_ga_config",
    "layer_replication", "megatron_core",     "megatron_config",     "qalora_group_size",
    "velora_config",     "monteclora_config", "ensure_weight_tying",
};

constexpr std::string_view kUnconverted =
    "trained against a changed base weight, which the file does not hold: save it again with "
    "save_pretrained(path_initial_model_for_weight_conversion=...), which makes it a plain LoRA";

// Reads one config. What is wrong is reported and leaves the default in place.
class ConfigReader {
 public:
  ConfigReader(const Json& json, PeftConfig& config, ProblemList& problems)
      : fields_(json, Printable(config.file), problems), config_(config) {}

  void Read() {
    fields_.Find("peft_type");
    config_.base_model = fields_.String("base_model_name_or_path");
    config_.task_type = fields_.String("task_type");
    config_.peft_version = fields_.String("peft_version");
    config_.use_rslora = fields_.Bool("use_rslora");
    fields_.Bool("fan_in_fan_out");
    if (const Json* dropout = fields_.Find("lora_dropout")) {
      config_.lora_dropout = fields_.Number("lora_dropout", *dropout).value_or(0);
    }
    ReadScaling();
    ReadTargets();
    ReadLayers();
    ReadInit();
    ReadSwitches();
  }

 private:
  void Unsupported(std::string_view key, std::string_view message) {
    config_.unsupported_keys.emplace(key);
    fields_.Refuse(Reason::kUnsupportedAdapter, key, message);
  }

  std::optional<int64_t> Rank(std::string_view key, const Json& value) {
    return fields_.Integer(key, value, 1, kMaxRank);
  }
  std::optional<double> Alpha(std::string_view key, const Json& value) {
    return fields_.Number(key, value);
  }

  template <typename Number>
  using ReadNumber = std::optional<Number> (ConfigReader::*)(std::string_view, const Json&);

  // nullopt when one of the numbers was refused: which pattern is the first is not known then.
  template <typename Number>
  std::optional<ModulePatterns<Number>> Patterns(std::string_view key, ReadNumber<Number> read) {
    ModulePatterns<Number> patterns;
    const Json* value = fields_.Find(key);
    if (value == nullptr) return patterns;
    if (!value->is_object()) {
      fields_.Malformed(key, "an object of numbers", *value);
      return std::nullopt;
    }
    for (const auto& [pattern, json] : value->items()) {
      const auto number = (this->*read)(fmt::format("{}.{}", key, pattern), json);
      if (number) patterns.emplace_back(pattern, *number);
    }
    if (patterns.size() != value->size()) return std::nullopt;
    return patterns;
  }

  // Absent means the default; null is an error in PEFT too.
  void ReadScaling() {
    if (const Json* r = fields_.FindEvenNull("r")) config_.r = Rank("r", *r);
    if (const Json* alpha = fields_.FindEvenNull("lora_alpha")) {
      config_.lora_alpha = Alpha("lora_alpha", *alpha);
    }
    config_.rank_pattern = Patterns<int64_t>("rank_pattern", &ConfigReader::Rank);
    config_.alpha_pattern = Patterns<double>("alpha_pattern", &ConfigReader::Alpha);
  }

  std::optional<ModuleNames> Names(std::string_view key, const Json& value) {
    auto names = fields_.Strings(key, value);
    if (!names) return std::nullopt;
    if (value.is_string()) return ModuleNames{true, std::move((*names)[0]), {}};
    return ModuleNames{false, "", *std::move(names)};
  }

  void ReadTargets() {
    bool exclude_is_known = true;
    if (const Json* exclude = fields_.Find("exclude_modules")) {
      auto names = Names("exclude_modules", *exclude);
      exclude_is_known = names.has_value();
      if (names) config_.exclude_modules = *std::move(names);
    }
    const Json* targets = fields_.Find("target_modules");
    if (targets == nullptr) {
      const Json* parameters = fields_.Find("target_parameters");
      if (parameters != nullptr && IsTruthy(*parameters)) return;  // refused on its own
      fields_.Refuse(Reason::kMalformedConfig, "target_modules",
                     "target_modules is missing: which modules the adapter changes is not known",
                     "a string or a list of strings", "nothing");
      return;
    }
    auto names = Names("target_modules", *targets);
    if (!names) return;
    if (names->empty()) return fields_.Malformed("target_modules", "at least one name", *targets);
    if (exclude_is_known) config_.target_modules = *std::move(names);
  }

  void ReadLayers() {
    const Json* layers = fields_.Find("layers_to_transform");
    const Json* patterns = fields_.Find("layers_pattern");
    const Json* targets = fields_.Find("target_modules");
    const bool by_pattern = targets != nullptr && targets->is_string();
    for (const auto& [key, value] :
         {std::pair("layers_to_transform", layers), std::pair("layers_pattern", patterns)}) {
      if (value == nullptr || !by_pattern) continue;
      fields_.Refuse(Reason::kMalformedConfig, key,
                     fmt::format("{} has no meaning when target_modules is a string", key));
    }
    if (layers != nullptr) ReadLayerNumbers(*layers);
    if (patterns != nullptr && IsTruthy(*patterns)) ReadLayersPattern(*patterns, layers);
  }

  void ReadLayerNumbers(const Json& layers) {
    const auto is_layer = [](const Json& value) {
      return value.is_number_integer() && std::abs(value.get<double>()) < 1e9;
    };
    bool valid = layers.is_array() ? layers.size() <= kMaxConfigNames : is_layer(layers);
    std::vector<int64_t> numbers;
    for (size_t i = 0; valid && layers.is_array() && i < layers.size(); ++i) {
      valid = is_layer(layers[i]);
      if (valid) numbers.push_back(layers[i].get<int64_t>());
    }
    if (!valid) {
      fields_.Malformed("layers_to_transform", "a whole number or a list of them", layers);
      return config_.target_modules.reset();
    }
    if (!layers.is_array()) numbers.push_back(layers.get<int64_t>());
    config_.layers_to_transform = std::move(numbers);
  }

  void ReadLayersPattern(const Json& value, const Json* layers) {
    auto patterns = fields_.Strings("layers_pattern", value);
    if (!patterns) return config_.target_modules.reset();
    if (patterns->size() > kMaxLayersPatterns) {
      fields_.Malformed("layers_pattern", fmt::format("at most {} patterns", kMaxLayersPatterns),
                        value);
      return config_.target_modules.reset();
    }
    config_.layers_pattern = *std::move(patterns);
    if (layers == nullptr || !IsTruthy(*layers)) {
      fields_.Refuse(Reason::kMalformedConfig, "layers_pattern",
                     "layers_pattern has no meaning without layers_to_transform");
    }
  }

  // Which initialisations leave the base model alone: lora/layer.py, update_layer.
  void ReadInit() {
    const Json* init = fields_.Find("init_lora_weights");
    if (init == nullptr || init->is_boolean()) return;
    if (!init->is_string()) {
      return fields_.Malformed("init_lora_weights", "true, false or a string", *init);
    }
    const std::string value = absl::AsciiStrToLower(init->get<std::string>());
    for (const std::string_view harmless : {"true", "gaussian", "orthogonal", "eva", "mica"}) {
      if (value == harmless) return;
    }
    bool changes_base = value == "olora" || value == "loftq" || value == "lora_ga";
    changes_base |= value.starts_with("pissa") || value.starts_with("corda");
    Unsupported("init_lora_weights", fmt::format("init_lora_weights {} {}", Shown(*init),
                                                 changes_base ? kUnconverted : "is not known"));
  }

  void ReadSwitches() {
    if (const Json* bias = fields_.Find("bias")) {
      if (!bias->is_string()) {
        fields_.Malformed("bias", "a string", *bias);
      } else if (*bias != "none") {
        Unsupported("bias", fmt::format("bias {} replaces biases of the base model, which is not "
                                        "supported",
                                        Shown(*bias)));
      }
    }
    for (const auto& [key, what] : kUnsupportedKeys) {
      const Json* value = fields_.Find(key);
      if (value == nullptr || !IsTruthy(*value)) continue;
      Unsupported(key, fmt::format("{} is set, but {} is not supported", key, what));
    }
    for (const std::string_view key : kInformationalKeys) fields_.Find(key);
    if (fields_.Find("runtime_config") != nullptr) {
      fields_.Warn("runtime_config", "runtime_config is ignored");
    }
    for (const std::string& key : fields_.UnknownTruthyKeys()) {
      Unsupported(key, fmt::format("{} is not known and set to {}: it may change the result",
                                   Quoted(key), Shown(fields_.json()[key])));
    }
  }

  ConfigFields fields_;
  PeftConfig& config_;
};

absl::Status ConfigError(Reason reason, const std::string& file, std::string_view message) {
  return Error(reason, fmt::format("{}: {}", Printable(file), message)).With("file", file);
}

absl::Status CheckPeftType(const Json& json, const std::string& file) {
  const auto type = json.find("peft_type");
  if (type == json.end()) {
    const bool mlx = json.contains("fine_tune_type") || json.contains("lora_parameters");
    return ConfigError(Reason::kMalformedConfig, file,
                       mlx ? "peft_type is missing: this is a config of mlx-lm, whose adapters are "
                             "not read yet"
                           : "peft_type is missing");
  }
  if (!type->is_string()) {
    return ConfigError(Reason::kMalformedConfig, file,
                       fmt::format("peft_type must be a string, found {}", Shown(*type)));
  }
  if (*type != "LORA") {
    return ConfigError(Reason::kUnsupportedAdapter, file,
                       fmt::format("peft_type {} is not supported, only LORA is", Shown(*type)));
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<PeftConfig> ParsePeftConfig(std::string_view text, std::string file,
                                          ProblemList& problems) {
  const absl::StatusOr<Json> json = ParseConfigJson(text);
  if (!json.ok()) {
    problems.Add(ConfigError(Reason::kMalformedConfig, file, std::string{json.status().message()}));
    return std::nullopt;
  }
  if (const absl::Status status = CheckPeftType(*json, file); !status.ok()) {
    problems.Add(Annotate(status, "field", "peft_type"));
    return std::nullopt;
  }
  PeftConfig config;
  config.file = std::move(file);
  ConfigReader(*json, config, problems).Read();
  return config;
}

}  // namespace adapterd
