#include "core/adapter/peft_replacements.h"

#include <fmt/format.h>

#include <optional>
#include <set>

#include "core/adapter/peft_keys.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

using Part = std::optional<PlannedPart>;

PlannedPart StartReplacement(const std::string& path) {
  PlannedPart part;
  part.info.path = path;
  part.info.kind = ModuleKind::kReplacement;
  part.info.scale = 1;
  return part;
}

// Of the layer with this path, which the config may name by its end; null: by none.
const std::vector<int64_t>* TokenIdsOf(const TrainedTokens& tokens, std::string_view path) {
  for (const auto& [name, ids] : tokens.layers) {
    if (tokens.of_input_embedding || path == name || path.ends_with("." + name)) return &ids;
  }
  return nullptr;
}

Part PlanTokenRows(const PeftConfig& config, const std::string& path,
                   const PeftReplacement& replacement, bool has_pair, TensorChecks& checks) {
  const SafetensorsEntry& rows = *replacement.token_rows;
  const auto refuse = [&](std::string what, Reason reason = Reason::kInvalidAdapter) -> Part {
    checks.Refuse({.reason = reason, .tensor = &rows, .module = path, .what = std::move(what)});
    return std::nullopt;
  };
  const std::vector<int64_t>* ids = TokenIdsOf(config.trained_tokens, path);
  if (ids == nullptr) {
    return refuse(fmt::format("belongs to module {}, which trainable_token_indices does not name",
                              Quoted(path)));
  }
  if (has_pair || replacement.weight != nullptr) {
    return refuse("replaces rows of a weight that is changed otherwise too",
                  Reason::kUnsupportedAdapter);
  }
  if (!checks.Matrix(rows, path, "[tokens, dim]")) return std::nullopt;
  if (rows.shape[0] != static_cast<int64_t>(ids->size())) {
    return refuse(
        fmt::format("has {} rows, but the config has {} tokens", rows.shape[0], ids->size()));
  }
  PlannedPart part = StartReplacement(path);
  part.info.in_features = rows.shape[0];
  part.info.out_features = rows.shape[1];
  part.info.weight_dtype = rows.dtype;
  part.info.weight_shape = rows.shape;
  part.info.token_ids = *ids;
  part.Add(rows, TensorRole::kWeight);
  return part;
}

// A weight whose name does not end with "weight" is a parameter of that name.
std::string_view ParameterOf(const std::string& path, const SafetensorsEntry* weight) {
  if (weight == nullptr || ParsePeftKey(weight->name).kind == PeftTensorKind::kWeight) return "";
  return TargetOf(path);
}

Problem ReplacedBias(const PeftConfig& config, const std::string& path) {
  Problem problem;
  problem.severity = Severity::kWarning;
  problem.reason = Reason::kInvalidAdapter;
  problem.file = config.file;
  problem.field = "bias";
  problem.module = Printable(path);
  problem.message = fmt::format(
      "the bias of module {} is replaced: Merge returns it, ApplyProjection cannot apply it",
      Quoted(path));
  return problem;
}

}  // namespace

std::optional<PlannedPart> PlanWholeReplacement(const std::string& path, std::string_view parameter,
                                                const SafetensorsEntry* weight,
                                                const SafetensorsEntry* bias,
                                                TensorChecks& checks) {
  PlannedPart part = StartReplacement(path);
  ModuleInfo& info = part.info;
  if (weight != nullptr) {
    if (!checks.Values(*weight, path, "at least one element")) return std::nullopt;
    info.parameter = parameter;
    info.weight_dtype = weight->dtype;
    info.weight_shape = weight->shape;
    info.out_features = weight->shape.empty() ? 1 : weight->shape[0];
    info.in_features = weight->shape.size() > 1 ? ElementsOf(*weight) / info.out_features : 0;
    part.Add(*weight, TensorRole::kWeight);
  }
  if (bias != nullptr) {
    const int64_t size = weight != nullptr ? info.out_features : ElementsOf(*bias);
    if (!checks.Vector(*bias, path, size)) return std::nullopt;
    info.out_features = size;
    info.replaces_bias = true;
    info.bias_dtype = bias->dtype;
    if (weight == nullptr) info.weight_dtype = bias->dtype;
    part.Add(*bias, TensorRole::kBias);
  }
  return part;
}

std::vector<PlannedPart> PlanReplacements(const PeftConfig& config, const PeftTensors& tensors,
                                          const std::vector<PlannedPart>& pairs,
                                          TensorChecks& checks, ProblemList& problems) {
  std::set<std::string_view> with_pair;
  for (const PlannedPart& pair : pairs) with_pair.insert(pair.info.path);
  std::vector<PlannedPart> parts;
  for (const auto& [path, replacement] : tensors.replacements) {
    const bool has_pair = with_pair.contains(path);
    const SafetensorsEntry* bias = has_pair ? nullptr : replacement.bias;
    if (has_pair && replacement.bias != nullptr) problems.Add(ReplacedBias(config, path));
    Part part;
    if (replacement.token_rows != nullptr) {
      part = PlanTokenRows(config, path, replacement, has_pair, checks);
    } else if (replacement.weight != nullptr || bias != nullptr) {
      part = PlanWholeReplacement(path, ParameterOf(path, replacement.weight), replacement.weight,
                                  bias, checks);
    }
    if (part) parts.push_back(*std::move(part));
  }
  return parts;
}

}  // namespace adapterd
