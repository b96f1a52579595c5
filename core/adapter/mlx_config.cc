#include "core/adapter/mlx_config.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "core/adapter/config_fields.h"
#include "core/adapter/peft_config.h"
#include "core/base/error.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

// More blocks than any model has.
constexpr int64_t kMaxBlocks = 1'000'000;

constexpr std::string_view kTuning = "fine_tune_type";
constexpr std::string_view kParameters = "lora_parameters";
constexpr std::string_view kRank = "lora_parameters.rank";
constexpr std::string_view kScale = "lora_parameters.scale";
constexpr std::string_view kAlpha = "lora_parameters.alpha";
constexpr std::string_view kDropout = "lora_parameters.dropout";
constexpr std::string_view kKeys = "lora_parameters.keys";

// use_dora is what fine_tune_type was called before there was anything but LoRA and DoRA.
std::optional<MlxTuning> ReadTuning(ConfigFields& fields) {
  const bool use_dora = fields.Bool("use_dora");
  const std::string name = fields.String(kTuning);
  if (name.empty()) return use_dora ? MlxTuning::kDora : MlxTuning::kLora;
  for (const MlxTuning tuning : {MlxTuning::kLora, MlxTuning::kDora, MlxTuning::kFull}) {
    if (name == MlxTuningName(tuning)) return tuning;
  }
  fields.Unsupported(kTuning, fmt::format("{} {} is not known: those that are read are lora, dora "
                                          "and full",
                                          kTuning, Quoted(name)));
  return std::nullopt;
}

void ReadBlocks(ConfigFields& fields, MlxConfig& config) {
  for (const std::string_view key : {"num_layers", "lora_layers"}) {
    const ConfigJson* value = fields.Find(key);
    if (value == nullptr) continue;
    const auto count = fields.Integer(key, *value, -kMaxBlocks, kMaxBlocks);
    config.num_layers = std::max<int64_t>(0, count.value_or(0));
    return;
  }
}

// A number of the parameters, which may not be missing.
std::optional<double> Required(ConfigFields& fields, const ConfigJson& parameters,
                               std::string_view name) {
  const auto found = parameters.find(name.substr(kParameters.size() + 1));
  if (found != parameters.end()) return fields.Number(name, *found);
  fields.Refuse(Reason::kMalformedConfig, name, fmt::format("{} is missing", name));
  return std::nullopt;
}

// A tool that knew one of these no longer knew alpha.
bool IgnoresAlpha(const ConfigJson& json) {
  return json.contains(kTuning) || json.contains("num_layers") || json.contains("use_dora");
}

// Until June 2024 the factor was scale * alpha / rank.
void ApplyAlpha(ConfigFields& fields, const ConfigJson& json, const ConfigJson& alpha_json,
                MlxConfig& config) {
  const auto alpha = fields.Number(kAlpha, alpha_json);
  if (!alpha || !config.scale || !config.rank) {
    config.scale = std::nullopt;
    return;
  }
  const double scale = *config.scale;
  const double with_alpha = scale * *alpha / static_cast<double>(*config.rank);
  if (with_alpha == scale) return;
  const bool ignored = IgnoresAlpha(json);
  if (!ignored) config.scale = with_alpha;
  fields.Warn(kAlpha,
              fmt::format("{} is {}, which mlx-lm multiplied by 1/rank and the scale until June "
                          "2024 and ignores since; {}, so the scale used is {} and not {}",
                          kAlpha, *alpha,
                          ignored ? "the other keys are of a later version"
                                  : "no key of a later version is there",
                          ignored ? scale : with_alpha, ignored ? with_alpha : scale));
}

void RefuseUnknown(ConfigFields& fields, const ConfigJson& parameters) {
  for (const auto& [key, value] : parameters.items()) {
    bool known = false;
    for (const std::string_view name : {kRank, kScale, kAlpha, kDropout, kKeys}) {
      known |= key == name.substr(kParameters.size() + 1);
    }
    if (known || !IsTruthy(value)) continue;
    fields.Unsupported(fmt::format("{}.{}", kParameters, key),
                       fmt::format("{} in {} is not known and set to {}: it may change the result",
                                   Quoted(key), kParameters, Shown(value)));
  }
}

void ReadParameters(ConfigFields& fields, const ConfigJson& json, MlxConfig& config) {
  const ConfigJson* parameters = fields.Find(kParameters);
  if (parameters == nullptr) {
    fields.Refuse(Reason::kMalformedConfig, kParameters, fmt::format("{} is missing", kParameters));
    return;
  }
  if (!parameters->is_object()) return fields.Malformed(kParameters, "an object", *parameters);
  const auto rank = parameters->find("rank");
  if (rank == parameters->end()) {
    fields.Refuse(Reason::kMalformedConfig, kRank, fmt::format("{} is missing", kRank));
  } else {
    config.rank = fields.Integer(kRank, *rank, 1, kMaxRank);
  }
  config.scale = Required(fields, *parameters, kScale);
  const auto alpha = parameters->find("alpha");
  if (alpha != parameters->end() && !alpha->is_null()) ApplyAlpha(fields, json, *alpha, config);
  if (config.scale && !(std::abs(*config.scale) <= kMaxAlpha)) {
    fields.Malformed(kScale, fmt::format("at most {:g}", kMaxAlpha), *parameters);
    config.scale = std::nullopt;
  }
  const auto dropout = parameters->find("dropout");
  if (dropout != parameters->end() && !dropout->is_null()) {
    config.dropout = fields.Number(kDropout, *dropout).value_or(0);
  }
  const auto keys = parameters->find("keys");
  if (keys != parameters->end() && !keys->is_null()) {
    config.keys = fields.Strings(kKeys, *keys).value_or(std::vector<std::string>());
  }
  RefuseUnknown(fields, *parameters);
}

}  // namespace

std::string_view MlxTuningName(MlxTuning tuning) {
  switch (tuning) {
    case MlxTuning::kLora:
      return "lora";
    case MlxTuning::kDora:
      return "dora";
    case MlxTuning::kFull:
      break;
  }
  return "full";
}

std::optional<MlxConfig> ReadMlxConfig(const absl::StatusOr<ConfigJson>& json, std::string file,
                                       ProblemList& problems) {
  if (!json.ok()) {
    problems.Add(Error(Reason::kMalformedConfig,
                       fmt::format("{}: {}", Printable(file), std::string(json.status().message())))
                     .With("file", file));
    return std::nullopt;
  }
  MlxConfig config;
  config.file = std::move(file);
  ConfigFields fields(*json, Printable(config.file), problems);
  const auto tuning = ReadTuning(fields);
  if (!tuning) return std::nullopt;
  config.tuning = *tuning;
  config.base_model = fields.String("model");
  ReadBlocks(fields, config);
  if (config.tuning != MlxTuning::kFull) ReadParameters(fields, *json, config);
  return config;
}

}  // namespace adapterd
