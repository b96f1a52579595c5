#include "core/adapter/peft_config.h"

#include <fmt/format.h>

#include <cmath>

#include "absl/strings/ascii.h"
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

// Reads one config. Every method reports what is wrong and leaves the default in place.
class ConfigReader {
 public:
  ConfigReader(const Json& json, PeftConfig& config, ProblemList& problems)
      : json_(json), config_(config), problems_(problems) {}

  void Read() {
    config_.base_model = String("base_model_name_or_path");
    config_.task_type = String("task_type");
    config_.peft_version = String("peft_version");
    config_.lora_dropout = Dropout();
    config_.use_rslora = Bool("use_rslora");
    Bool("fan_in_fan_out");
    ReadScaling();
    ReadTargets();
    ReadLayers();
    ReadInit();
    ReadSwitches();
  }

 private:
  // Null and absent are the same but for `r`, `lora_alpha`, `peft_type` and the targets.
  const Json* Find(std::string_view key) {
    seen_.emplace(key);
    const auto found = json_.find(key);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }

  void Refuse(Reason reason, std::string_view key, std::string message, std::string expected = "",
              std::string actual = "") {
    Problem problem;
    problem.reason = reason;
    problem.file = config_.file;
    problem.field = Printable(key);
    problem.message = fmt::format("{}: {}", Printable(config_.file), message);
    problem.expected = std::move(expected);
    problem.actual = std::move(actual);
    problems_.Add(std::move(problem));
  }

  void Malformed(std::string_view key, std::string_view expected, const Json& value) {
    Refuse(Reason::kMalformedConfig, key,
           fmt::format("{} must be {}, found {}", Printable(key), expected, Shown(value)),
           std::string(expected), Shown(value));
  }

  void Unsupported(std::string_view key, std::string message) {
    config_.unsupported_keys.emplace(key);
    Refuse(Reason::kUnsupportedAdapter, key, std::move(message));
  }

  std::string String(std::string_view key) {
    const Json* value = Find(key);
    if (value == nullptr) return "";
    if (value->is_string()) return value->get<std::string>();
    Malformed(key, "a string or null", *value);
    return "";
  }

  bool Bool(std::string_view key) {
    const Json* value = Find(key);
    if (value == nullptr) return false;
    if (value->is_boolean()) return value->get<bool>();
    Malformed(key, "true or false", *value);
    return false;
  }

  double Dropout() {
    const Json* value = Find("lora_dropout");
    if (value == nullptr) return 0;
    if (value->is_number()) return value->get<double>();
    Malformed("lora_dropout", "a number", *value);
    return 0;
  }

  std::optional<int64_t> Rank(std::string_view key, const Json& value) {
    if (value.is_number_integer() && value.get<double>() >= 1 &&
        value.get<double>() <= static_cast<double>(kMaxRank)) {
      return value.get<int64_t>();
    }
    Malformed(key, fmt::format("a whole number from 1 to {}", kMaxRank), value);
    return std::nullopt;
  }

  std::optional<double> Alpha(std::string_view key, const Json& value) {
    if (value.is_number()) return value.get<double>();
    Malformed(key, "a number", value);
    return std::nullopt;
  }

  template <typename Number>
  std::optional<ModulePatterns<Number>> Patterns(
      std::string_view key,
      std::optional<Number> (ConfigReader::*read)(std::string_view, const Json&)) {
    ModulePatterns<Number> patterns;
    const Json* value = Find(key);
    if (value == nullptr) return patterns;
    if (!value->is_object()) {
      Malformed(key, "an object of numbers", *value);
      return std::nullopt;
    }
    bool complete = true;
    for (const auto& [pattern, number] : value->items()) {
      const auto read_number = (this->*read)(fmt::format("{}.{}", key, pattern), number);
      if (read_number) {
        patterns.emplace_back(pattern, *read_number);
      } else {
        complete = false;
      }
    }
    if (!complete) return std::nullopt;
    return patterns;
  }

  void ReadScaling() {
    Find("r");
    Find("lora_alpha");
    // Absent means the default, null is an error in PEFT too.
    if (const auto r = json_.find("r"); r != json_.end()) config_.r = Rank("r", *r);
    if (const auto alpha = json_.find("lora_alpha"); alpha != json_.end()) {
      config_.lora_alpha = Alpha("lora_alpha", *alpha);
    }
    config_.rank_pattern = Patterns<int64_t>("rank_pattern", &ConfigReader::Rank);
    config_.alpha_pattern = Patterns<double>("alpha_pattern", &ConfigReader::Alpha);
  }

  // A list of strings, or with `single` also one string.
  std::optional<std::vector<std::string>> Strings(std::string_view key, const Json& value) {
    if (value.is_string()) return std::vector<std::string>{value.get<std::string>()};
    std::vector<std::string> names;
    bool strings = value.is_array();
    if (strings) {
      for (const Json& item : value) {
        if (!item.is_string()) {
          strings = false;
          break;
        }
        names.push_back(item.get<std::string>());
      }
    }
    if (strings) return names;
    Malformed(key, "a string or a list of strings", value);
    return std::nullopt;
  }

  std::optional<ModuleNames> Names(std::string_view key, const Json& value) {
    auto names = Strings(key, value);
    if (!names) return std::nullopt;
    if (value.is_string()) return ModuleNames{true, std::move((*names)[0]), {}};
    return ModuleNames{false, "", *std::move(names)};
  }

  void ReadTargets() {
    if (const Json* exclude = Find("exclude_modules")) {
      // Unknown exclusions make the question "is this targeted" unanswerable.
      const auto names = Names("exclude_modules", *exclude);
      if (names) config_.exclude_modules = *names;
      exclude_is_known_ = names.has_value();
    }
    if (const Json* saved = Find("modules_to_save")) {
      if (const auto names = Strings("modules_to_save", *saved)) config_.modules_to_save = *names;
    }
    const Json* targets = Find("target_modules");
    if (targets == nullptr) {
      const auto parameters = json_.find("target_parameters");
      if (parameters != json_.end() && IsTruthy(*parameters)) return;  // refused on its own
      Refuse(Reason::kMalformedConfig, "target_modules",
             "target_modules is missing: which modules the adapter changes is not known",
             "a string or a list of strings", "nothing");
      return;
    }
    auto names = Names("target_modules", *targets);
    if (!names) return;
    if (names->empty()) return Malformed("target_modules", "at least one name", *targets);
    if (exclude_is_known_) config_.target_modules = std::move(names);
  }

  void ReadLayers() {
    const Json* layers = Find("layers_to_transform");
    const Json* pattern = Find("layers_pattern");
    const auto targets = json_.find("target_modules");
    const bool by_regex = targets != json_.end() && targets->is_string();
    for (const auto& [key, value] :
         {std::pair("layers_to_transform", layers), std::pair("layers_pattern", pattern)}) {
      if (value == nullptr || !by_regex) continue;
      Refuse(Reason::kMalformedConfig, key,
             fmt::format("{} has no meaning when target_modules is a string", key));
    }
    if (layers != nullptr) ReadLayerNumbers(*layers);
    if (pattern == nullptr) return;
    const auto patterns = Strings("layers_pattern", *pattern);
    if (!patterns) return config_.target_modules.reset();
    if (pattern->is_string() && (*patterns)[0].empty()) return;
    config_.layers_pattern = *patterns;
    if (!patterns->empty() && (layers == nullptr || !IsTruthy(*layers))) {
      Refuse(Reason::kMalformedConfig, "layers_pattern",
             "layers_pattern has no meaning without layers_to_transform");
    }
  }

  void ReadLayerNumbers(const Json& layers) {
    std::vector<int64_t> numbers;
    const auto add = [&numbers](const Json& value) {
      if (!value.is_number_integer() || std::abs(value.get<double>()) > 1e9) return false;
      numbers.push_back(value.get<int64_t>());
      return true;
    };
    bool valid = layers.is_array() || add(layers);
    if (layers.is_array()) {
      for (const Json& layer : layers) valid = valid && add(layer);
    }
    if (!valid) {
      Malformed("layers_to_transform", "a whole number or a list of them", layers);
      return config_.target_modules.reset();
    }
    config_.layers_to_transform = std::move(numbers);
  }

  // Which initialisations leave the base model alone: lora/layer.py, update_layer.
  void ReadInit() {
    const Json* init = Find("init_lora_weights");
    if (init == nullptr || init->is_boolean()) return;
    if (!init->is_string()) {
      return Malformed("init_lora_weights", "true, false or a string", *init);
    }
    const std::string value = absl::AsciiStrToLower(init->get<std::string>());
    for (const std::string_view harmless : {"true", "gaussian", "orthogonal", "eva", "mica"}) {
      if (value == harmless) return;
    }
    bool changes_base = value == "olora" || value == "loftq" || value == "lora_ga";
    changes_base |= value.starts_with("pissa") || value.starts_with("corda");
    Unsupported(
        "init_lora_weights",
        changes_base
            ? fmt::format("init_lora_weights {} trained against a changed base weight, which "
                          "the file does not hold: save it again with save_pretrained("
                          "path_initial_model_for_weight_conversion=...), which makes it "
                          "a plain LoRA",
                          Quoted(value))
            : fmt::format("init_lora_weights {} is not known", Quoted(value)));
  }

  void ReadSwitches() {
    if (const Json* bias = Find("bias")) {
      if (!bias->is_string()) {
        Malformed("bias", "a string", *bias);
      } else if (*bias != "none") {
        Unsupported("bias", fmt::format("bias {} replaces biases of the base model, which is not "
                                        "supported",
                                        Shown(*bias)));
      }
    }
    for (const auto& [key, what] : kUnsupportedKeys) {
      const Json* value = Find(key);
      if (value == nullptr || !IsTruthy(*value)) continue;
      Unsupported(key, fmt::format("{} is set, but {} is not supported", key, what));
    }
    for (const std::string_view key : kInformationalKeys) Find(key);
    if (Find("runtime_config") != nullptr) {
      Problem problem;
      problem.severity = Severity::kWarning;
      problem.reason = Reason::kMalformedConfig;
      problem.file = config_.file;
      problem.field = "runtime_config";
      problem.message = fmt::format("{}: runtime_config is ignored", Printable(config_.file));
      problems_.Add(std::move(problem));
    }
    ReadUnknownKeys();
  }

  void ReadUnknownKeys() {
    Find("peft_type");
    for (const auto& [key, value] : json_.items()) {
      if (seen_.contains(key) || !IsTruthy(value)) continue;
      Unsupported(key, fmt::format("{} is not known and set to {}: it may change the result",
                                   Quoted(key), Shown(value)));
    }
  }

  const Json& json_;
  PeftConfig& config_;
  ProblemList& problems_;
  bool exclude_is_known_ = true;
  std::set<std::string, std::less<>> seen_;
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
    problems.Add(ConfigError(Reason::kMalformedConfig, file, std::string(json.status().message())));
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
