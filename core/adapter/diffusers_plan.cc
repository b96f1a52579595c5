#include "core/adapter/diffusers_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_replace.h"
#include "core/adapter/diffusers_keys.h"
#include "core/adapter/diffusion_pairs.h"
#include "core/adapter/peft_config.h"
#include "core/adapter/peft_plan.h"
#include "core/adapter/plan_parts.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

using Configs = std::map<std::string, ConfigJson, std::less<>>;
using Headers = std::map<std::string, SafetensorsHeader, std::less<>>;

// The metadata's keys "unet.r", or "r" alone, by component. nullopt: refused.
std::optional<Configs> ReadConfigs(const SafetensorsHeader& header, TensorChecks& checks) {
  Configs configs;
  const auto metadata = header.metadata.find(kDiffusersMetadata);
  if (metadata == header.metadata.end()) return configs;
  const auto json = ParseConfigJson(metadata->second);
  if (!json.ok()) {
    checks.Refuse({.reason = Reason::kMalformedConfig,
                   .what = fmt::format("has a {} that is {}", kDiffusersMetadata,
                                       std::string(json.status().message()))});
    return std::nullopt;
  }
  for (const auto& [key, value] : json->items()) {
    const std::string component(ComponentOf(key));
    configs[component][component.empty() ? key : key.substr(component.size() + 1)] = value;
  }
  for (auto& [component, config] : configs) {
    if (!config.contains("peft_type")) config["peft_type"] = "LORA";
  }
  return configs;
}

Headers SplitByComponent(const SafetensorsHeader& header) {
  Headers headers;
  for (const SafetensorsEntry& tensor : header.tensors) {
    headers[std::string(ComponentOf(tensor.name))].tensors.push_back(tensor);
  }
  return headers;
}

// False: refused.
bool CheckComponents(const Headers& headers, const Configs& configs, TensorChecks& checks) {
  if (headers.empty()) {
    checks.Refuse({.what = "holds no tensors at all"});
    return false;
  }
  if (const auto bare = headers.find(""); bare != headers.end() && headers.size() > 1) {
    checks.Refuse({.tensor = &bare->second.tensors.front(),
                   .what = fmt::format("names no component, but others do (like {})",
                                       Quoted(std::next(bare)->second.tensors.front().name))});
    return false;
  }
  for (const auto& [component, config] : configs) {
    if (headers.contains(component)) continue;
    checks.Refuse(
        {.what = fmt::format("has a config in {} for {}, and no tensor of it", kDiffusersMetadata,
                             component.empty() ? "names without component" : Quoted(component))});
    return false;
  }
  return true;
}

// What PEFT calls a tensor; empty when it is no part of a pair.
std::string PeftName(const DiffusionKey& key) {
  switch (key.part) {
    case DiffusionPart::kDown:
      return key.module + ".lora_A.weight";
    case DiffusionPart::kUp:
      return key.module + ".lora_B.weight";
    case DiffusionPart::kUpBias:
      return key.module + ".lora_B.bias";
    case DiffusionPart::kMagnitude:
      return key.module + ".lora_magnitude_vector";
    default:
      return "";
  }
}

// One component that has a config: PEFT's, under PEFT's names, until the plan is made.
class ConfiguredComponent {
 public:
  ConfiguredComponent(const SafetensorsHeader& header, std::string file) : file_(std::move(file)) {
    for (SafetensorsEntry tensor : header.tensors) {
      const std::string name = PeftName(ParseDiffusersKey(tensor.name));
      if (!name.empty() && given_names_.emplace(name, tensor.name).second) tensor.name = name;
      header_.tensors.push_back(std::move(tensor));
    }
  }

  std::optional<WeightsPlan> Plan(const ConfigJson& json, ProblemList& problems) {
    ProblemList found;
    std::optional<WeightsPlan> plan;
    const auto config =
        ReadPeftConfig(json, fmt::format("{} in {}", kDiffusersMetadata, file_), found);
    if (config) plan = BuildPeftPlan(*config, header_, file_, nullptr, found);
    for (Problem problem : found.items()) problems.Add(WithGivenNames(std::move(problem)));
    if (!plan) return std::nullopt;
    for (ModuleInfo& info : plan->manifest.modules) {
      Restore(info.lora_a_tensor);
      Restore(info.lora_b_tensor);
    }
    for (PlannedModule& module : plan->modules) {
      for (PlannedTensor& tensor : module.tensors) Restore(tensor.name);
    }
    return plan;
  }

 private:
  void Restore(std::string& name) const {
    const auto given = given_names_.find(name);
    if (given != given_names_.end()) name = given->second;
  }

  Problem WithGivenNames(Problem problem) const {
    const auto given = given_names_.find(problem.tensor);
    if (given == given_names_.end()) return problem;
    absl::StrReplaceAll({{problem.tensor, given->second}}, &problem.message);
    problem.tensor = given->second;
    return problem;
  }

  const std::string file_;
  SafetensorsHeader header_;
  std::map<std::string, std::string, std::less<>> given_names_;  // by PEFT's
};

Problem Warning(std::string_view file, std::string_view message) {
  Problem problem;
  problem.severity = Severity::kWarning;
  problem.reason = Reason::kInvalidAdapter;
  problem.file = file;
  problem.message = fmt::format("{} {}", file, message);
  return problem;
}

void WarnOfMissingAlphas(const std::vector<PlannedPart>& parts, std::string_view file,
                         ProblemList& problems) {
  std::set<int64_t> ranks;
  for (const PlannedPart& part : parts) ranks.insert(part.info.rank);
  problems.Add(Warning(file,
                       "holds no alpha: as diffusers does, it is taken for the rank, so that the "
                       "scale is 1, whatever it was in training"));
  if (ranks.size() > 1) {
    problems.Add(Warning(file,
                         "holds ranks that differ and no alpha: versions of diffusers before "
                         "August 2026 took the first rank for the alpha of all"));
  }
}

// One component without a config.
std::optional<WeightsPlan> PlanPlainComponent(const SafetensorsHeader& header,
                                              const InputFile& weights, TensorChecks& checks,
                                              ProblemList& problems) {
  const DiffusionModules modules = SortDiffusionTensors(header, ParseDiffusersKey, checks);
  const AlphaValues alphas = ReadAlphas(weights, modules, checks);
  std::vector<PlannedPart> parts;
  const DiffusionTensors* without_alpha = nullptr;
  size_t alpha_count = 0;
  for (const auto& [key, tensors] : modules) {
    if (tensors.alpha == nullptr) without_alpha = &tensors;
    if (tensors.alpha != nullptr) ++alpha_count;
    auto part = PlanDiffusionPair(key.second, tensors, alphas, ZeroAlpha::kIsZero, checks);
    if (part) parts.push_back(*std::move(part));
  }
  if (without_alpha != nullptr && alpha_count > 0) {
    checks.Refuse({.tensor = &without_alpha->Any(),
                   .what = fmt::format("has no alpha, but {} other modules of the file have one: "
                                       "versions of diffusers differ in what that means",
                                       alpha_count)});
  } else if (without_alpha != nullptr) {
    WarnOfMissingAlphas(parts, checks.file(), problems);
  }
  if (parts.empty()) return std::nullopt;
  WeightsPlan plan;
  plan.manifest.method = MethodOf(parts);
  SetModules(std::move(parts), plan);
  return plan;
}

// Adds the modules of `component` under its name.
void AddComponent(const std::string& component, WeightsPlan from, WeightsPlan& plan) {
  AdapterManifest& manifest = plan.manifest;
  if (manifest.method.empty() || from.manifest.method == "dora") {
    manifest.method = from.manifest.method;
  } else if (manifest.method != from.manifest.method && manifest.method != "dora") {
    manifest.method = "lora";
  }
  manifest.lora_dropout = std::max(manifest.lora_dropout, from.manifest.lora_dropout);
  for (ModuleInfo& info : from.manifest.modules) {
    info.path = fmt::format("{}.{}", component, info.path);
    // Of several components each has its own rule; alpha / rank is the one for all.
    info.alpha = info.scale * static_cast<double>(info.rank);
    manifest.modules.push_back(std::move(info));
  }
  std::move(from.modules.begin(), from.modules.end(), std::back_inserter(plan.modules));
}

void IndexModules(AdapterManifest& manifest) {
  std::vector<std::string> paths;
  for (const ModuleInfo& info : manifest.modules) paths.push_back(info.path);
  manifest.index = ModuleIndex(paths);
}

}  // namespace

std::optional<WeightsPlan> PlanDiffusers(const SourceFiles& files, const SourceSpec& spec,
                                         ProblemList& problems) {
  if (!files.header) return std::nullopt;
  TensorChecks checks(Printable(files.weights->name()), problems);
  const auto configs = ReadConfigs(*files.header, checks);
  if (!configs) return std::nullopt;
  const Headers headers = SplitByComponent(*files.header);
  if (!CheckComponents(headers, *configs, checks)) return std::nullopt;
  std::map<std::string, WeightsPlan> plans;
  for (const auto& [component, header] : headers) {
    const auto config = configs->find(component);
    auto plan = config != configs->end()
                    ? ConfiguredComponent(header, checks.file()).Plan(config->second, problems)
                    : PlanPlainComponent(header, *files.weights, checks, problems);
    if (plan) plans.emplace(component, *std::move(plan));
  }
  if (plans.empty()) return std::nullopt;
  WeightsPlan plan;
  if (headers.size() == 1) {
    plan = std::move(plans.begin()->second);
  } else {
    for (auto& [component, part] : plans) AddComponent(component, std::move(part), plan);
    IndexModules(plan.manifest);
  }
  plan.manifest.format = AdapterFormat::kDiffusers;
  if (plan.manifest.base_model.empty()) plan.manifest.base_model = spec.base_model;
  return plan;
}

}  // namespace adapterd
