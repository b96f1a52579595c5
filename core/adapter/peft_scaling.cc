#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/adapter/peft_config_parts.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

using Json = ConfigJson;

// Defaults of AdaLoraConfig and VeraConfig.
constexpr int64_t kDefaultInitR = 12;
constexpr int64_t kDefaultVeraR = 256;

std::optional<int64_t> ReadRank(ConfigFields& fields, std::string_view key, const Json& value) {
  return fields.Integer(key, value, 1, kMaxRank);
}

std::optional<double> ReadAlpha(ConfigFields& fields, std::string_view key, const Json& value) {
  const auto alpha = fields.Number(key, value);
  if (!alpha || std::abs(*alpha) <= kMaxAlpha) return alpha;
  fields.Malformed(key, fmt::format("between {} and {}", -kMaxAlpha, kMaxAlpha), value);
  return std::nullopt;
}

// nullopt when one of the numbers was refused: which pattern is the first is not known then.
template <typename Number>
std::optional<ModulePatterns<Number>> ReadPatterns(ConfigFields& fields, std::string_view key,
                                                   std::optional<Number> (*read)(ConfigFields&,
                                                                                 std::string_view,
                                                                                 const Json&)) {
  ModulePatterns<Number> patterns;
  const Json* value = fields.Find(key);
  if (value == nullptr) return patterns;
  if (!value->is_object()) {
    fields.Malformed(key, "an object of numbers", *value);
    return std::nullopt;
  }
  for (const auto& [pattern, json] : value->items()) {
    const auto number = read(fields, fmt::format("{}.{}", key, pattern), json);
    if (number) patterns.emplace_back(pattern, *number);
  }
  if (patterns.size() != value->size()) return std::nullopt;
  return patterns;
}

double ReadDropout(ConfigFields& fields, std::string_view key) {
  const Json* dropout = fields.Find(key);
  return dropout == nullptr ? 0 : fields.Number(key, *dropout).value_or(0);
}

// Absent means the default; null is an error in PEFT too.
void ReadRankAndAlpha(ConfigFields& fields, std::string_view rank_key, PeftConfig& config) {
  if (const Json* r = fields.FindEvenNull(rank_key)) config.r = ReadRank(fields, rank_key, *r);
  if (const Json* alpha = fields.FindEvenNull("lora_alpha")) {
    config.lora_alpha = ReadAlpha(fields, "lora_alpha", *alpha);
  }
  config.lora_dropout = ReadDropout(fields, "lora_dropout");
}

void ReadLora(ConfigFields& fields, PeftConfig& config) {
  ReadRankAndAlpha(fields, "r", config);
  config.use_rslora = fields.Bool("use_rslora");
  config.rank_pattern = ReadPatterns<int64_t>(fields, "rank_pattern", ReadRank);
  config.alpha_pattern = ReadPatterns<double>(fields, "alpha_pattern", ReadAlpha);
}

// Path of the module that rank_pattern means by "<path>.lora_E" or "<path>.lora_E.<adapter name>";
// empty: it means none.
std::string ModuleOfMask(std::string_view name) {
  constexpr std::string_view kFactor = ".lora_E";
  const size_t factor = name.rfind(kFactor);
  if (factor == std::string_view::npos) return "";
  const std::string_view rest = name.substr(factor + kFactor.size());
  const bool fits = rest.empty() || (rest[0] == '.' && rest.find('.', 1) == std::string_view::npos);
  return fits ? std::string(name.substr(0, factor)) : "";
}

std::optional<int64_t> CountKept(const Json& mask, std::optional<int64_t> init_r) {
  if (!mask.is_array() || mask.size() > static_cast<size_t>(kMaxRank)) return std::nullopt;
  if (init_r && mask.size() != static_cast<size_t>(*init_r)) return std::nullopt;
  const bool booleans = std::all_of(mask.begin(), mask.end(),
                                    [](const Json& element) { return element.is_boolean(); });
  if (!booleans) return std::nullopt;
  return std::count_if(mask.begin(), mask.end(),
                       [](const Json& element) { return element.get<bool>(); });
}

// AdaLoRA's rank_pattern has a mask over init_r singular values for each module. PEFT drops the
// masked ones from the tensors when it saves: adalora/model.py, resize_state_dict_by_rank_pattern.
std::optional<ModulePatterns<int64_t>> ReadMasks(ConfigFields& fields, const PeftConfig& config) {
  ModulePatterns<int64_t> ranks;
  const Json* value = fields.Find("rank_pattern");
  if (value == nullptr) return ranks;
  if (!value->is_object()) {
    fields.Malformed("rank_pattern", "an object of lists", *value);
    return std::nullopt;
  }
  for (const auto& [name, mask] : value->items()) {
    const std::string key = fmt::format("rank_pattern.{}", name);
    std::string path = ModuleOfMask(name);
    const auto kept = CountKept(mask, config.r);
    if (path.empty()) {
      fields.Refuse(Reason::kMalformedConfig, key,
                    fmt::format("{} must name the lora_E of a module", Printable(key)));
    } else if (!kept) {
      fields.Malformed(key, fmt::format("a list of {} booleans", config.r.value_or(kDefaultInitR)),
                       mask);
    } else {
      ranks.emplace_back(std::move(path), *kept);
    }
  }
  if (ranks.size() != value->size()) return std::nullopt;
  return ranks;
}

// An alpha of 0 or less stands for the rank: adalora/layer.py, update_layer.
void ResolveAdaLoraAlpha(ConfigFields& fields, PeftConfig& config) {
  if (!config.lora_alpha || *config.lora_alpha > 0) return;
  config.lora_alpha.reset();
  if (!config.r || !config.kept_ranks) return;  // refused already
  const bool pruned = std::any_of(config.kept_ranks->begin(), config.kept_ranks->end(),
                                  [&](const auto& module) { return module.second != *config.r; });
  if (!pruned) {
    config.lora_alpha = static_cast<double>(*config.r);
    return;
  }
  fields.Unsupported(
      "lora_alpha",
      "lora_alpha is not above 0 and stands for the rank, which is init_r when PEFT "
      "trains and what rank_pattern leaves of it when PEFT loads: which one is meant "
      "is not known");
}

void ReadAdaLora(ConfigFields& fields, PeftConfig& config) {
  config.r = kDefaultInitR;
  ReadRankAndAlpha(fields, "init_r", config);
  config.kept_ranks = ReadMasks(fields, config);
  ResolveAdaLoraAlpha(fields, config);
  for (const std::string_view key : {"use_rslora", "alpha_pattern"}) {
    const Json* value = fields.Find(key);
    if (value == nullptr || !IsTruthy(*value)) continue;
    fields.Warn(key, fmt::format("{} is set, which AdaLoRA ignores", key));
  }
}

void ReadVera(ConfigFields& fields, PeftConfig& config) {
  config.r = kDefaultVeraR;
  if (const Json* r = fields.FindEvenNull("r")) config.r = ReadRank(fields, "r", *r);
  config.lora_dropout = ReadDropout(fields, "vera_dropout");
  if (fields.Find("save_projection") == nullptr || fields.Bool("save_projection")) return;
  if (!fields.Find("save_projection")->is_boolean()) return;
  fields.Unsupported("save_projection",
                     "save_projection is false: vera_A and vera_B are not in the file, and no "
                     "other program draws the random numbers that PyTorch makes them of; save the "
                     "adapter again with save_projection=True");
}

}  // namespace

void ReadPeftScaling(ConfigFields& fields, PeftConfig& config) {
  switch (config.method) {
    case PeftMethod::kLora:
      return ReadLora(fields, config);
    case PeftMethod::kAdaLora:
      return ReadAdaLora(fields, config);
    case PeftMethod::kVera:
      return ReadVera(fields, config);
  }
}

}  // namespace adapterd
