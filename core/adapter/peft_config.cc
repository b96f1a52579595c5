#include "core/adapter/peft_config.h"

#include <fmt/format.h>

#include "core/adapter/config_fields.h"
#include "core/adapter/config_json.h"
#include "core/adapter/peft_config_parts.h"
#include "core/base/error.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

void ReadCommon(ConfigFields& fields, PeftConfig& config) {
  fields.Find("peft_type");
  config.base_model = fields.String("base_model_name_or_path");
  config.task_type = fields.String("task_type");
  config.peft_version = fields.String("peft_version");
  config.fan_in_fan_out = fields.Bool("fan_in_fan_out");
  if (fields.Find("runtime_config") != nullptr) {
    fields.Warn("runtime_config", "runtime_config is ignored");
  }
}

void RefuseUnknownKeys(ConfigFields& fields, PeftMethod method) {
  for (const std::string_view key : InformationalKeys(method)) fields.Find(key);
  for (const auto& [key, value] : fields.UnknownTruthyKeys()) {
    fields.Unsupported(key, fmt::format("{} is not known of {} and set to {}: it may change the "
                                        "result",
                                        Quoted(key), PeftTypeName(method), Shown(*value)));
  }
}

absl::Status ConfigError(Reason reason, const std::string& file, std::string_view message) {
  return Error(reason, fmt::format("{}: {}", Printable(file), message)).With("file", file);
}

absl::StatusOr<PeftMethod> ReadPeftType(const ConfigJson& json, const std::string& file) {
  const auto type = json.find("peft_type");
  if (type == json.end()) {
    const bool mlx_vlm = json.contains("rank") && json.contains("alpha");
    return ConfigError(Reason::kMalformedConfig, file,
                       mlx_vlm ? "peft_type is missing: configs of mlx-vlm, which multiplies by "
                                 "alpha itself, are not read"
                               : "peft_type is missing");
  }
  if (!type->is_string()) {
    return ConfigError(Reason::kMalformedConfig, file,
                       fmt::format("peft_type must be a string, found {}", Shown(*type)));
  }
  const std::string name = type->get<std::string>();
  if (const auto method = FindPeftMethod(name)) return *method;
  return ConfigError(
      Reason::kUnsupportedAdapter, file,
      fmt::format("peft_type {} is not supported: {}", Shown(*type), WhyRefused(name)));
}

}  // namespace

std::optional<PeftConfig> ParsePeftConfig(std::string_view text, std::string file,
                                          ProblemList& problems) {
  return ReadPeftConfig(ParseConfigJson(text), std::move(file), problems);
}

std::optional<PeftConfig> ReadPeftConfig(const absl::StatusOr<ConfigJson>& json, std::string file,
                                         ProblemList& problems) {
  if (!json.ok()) {
    problems.Add(ConfigError(Reason::kMalformedConfig, file, std::string{json.status().message()}));
    return std::nullopt;
  }
  const absl::StatusOr<PeftMethod> method = ReadPeftType(*json, file);
  if (!method.ok()) {
    problems.Add(Annotate(method.status(), "field", "peft_type"));
    return std::nullopt;
  }
  PeftConfig config;
  config.file = std::move(file);
  config.method = *method;
  ConfigFields fields(*json, Printable(config.file), problems);
  ReadCommon(fields, config);
  ReadPeftScaling(fields, config);
  ReadPeftTargets(fields, config);
  ReadPeftExtras(fields, config);
  RefuseUnknownKeys(fields, config.method);
  config.unsupported_keys = fields.unsupported();
  return config;
}

}  // namespace adapterd
