#include "core/adapter/peft_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/adapter/peft_checks.h"
#include "core/adapter/peft_export.h"
#include "core/adapter/peft_fold.h"
#include "core/adapter/peft_pairs.h"
#include "core/adapter/peft_replacements.h"
#include "core/adapter/peft_tensors.h"
#include "core/adapter/plan_parts.h"

namespace adapterd {
namespace {

std::string MethodName(const PeftConfig& config) {
  if (config.method == PeftMethod::kAdaLora) return "adalora";
  if (config.method == PeftMethod::kVera) return "vera";
  if (config.use_dora) return "dora";
  return config.use_rslora ? "rslora" : "lora";
}

std::vector<PlannedPart> PlanPairs(const PeftConfig& config, const PeftTensors& tensors,
                                   const BaseFacts* base, TensorChecks& checks,
                                   ProblemList& problems) {
  std::vector<PlannedPart> parts;
  PairPlanner planner(config, tensors, base, checks, problems);
  for (const auto& [key, pair] : tensors.pairs) {
    auto part = planner.Plan(key.first, key.second, pair);
    if (part) parts.push_back(*std::move(part));
  }
  planner.Finish();
  return parts;
}

// How its tensors become factors, and what the revision says of their meaning.
void FinishPart(PeftMethod method, PlannedPart& part) {
  for (PlannedTensor& tensor : part.tensors.tensors) {
    if (part.swapped) tensor.revision_role = fmt::format("{}_swapped", RoleName(tensor.role));
    if (part.info.token_ids.empty()) continue;
    tensor.revision_role = fmt::format("token_rows:{}", fmt::join(part.info.token_ids, ","));
  }
  if (part.tensors.fold) return;
  part.tensors.fold = [method, swapped = part.swapped](const ModuleInfo& info, StoredTensors stored,
                                                       const StoredTensors& shared) {
    return FoldTensors(method, info, swapped, std::move(stored), shared);
  };
}

WeightsPlan Assemble(const PeftConfig& config, const PeftTensors& tensors,
                     std::vector<PlannedPart> parts) {
  WeightsPlan plan;
  plan.manifest.method = MethodName(config);
  plan.manifest.base_model = config.base_model;
  plan.manifest.lora_dropout = config.lora_dropout;
  plan.manifest.peft = config;
  plan.bind.fan_in_fan_out = config.fan_in_fan_out;
  for (const auto& [start, end] : config.layer_replication) {
    plan.bind.layer_replication.push_back({start, end});
  }
  for (PlannedPart& part : parts) FinishPart(config.method, part);
  SetModules(std::move(parts), plan);
  if (tensors.vera_a != nullptr && tensors.vera_b != nullptr) {
    PlannedPart shared;
    shared.Add(*tensors.vera_a, TensorRole::kLoraA);
    shared.Add(*tensors.vera_b, TensorRole::kLoraB);
    plan.shared = std::move(shared.tensors.tensors);
    for (PlannedTensor& tensor : plan.shared) {
      tensor.revision_role = tensor.role == TensorRole::kLoraA ? "vera_a" : "vera_b";
    }
    SortByOffset(plan.shared);
  }
  return plan;
}

}  // namespace

std::optional<WeightsPlan> BuildPeftPlan(const PeftConfig& config, const SafetensorsHeader& header,
                                         std::string_view weights_file, const BaseFacts* base,
                                         ProblemList& problems) {
  TensorChecks checks(weights_file, problems);
  const PeftTensors tensors = SortPeftTensors(config, header, weights_file, problems);
  std::vector<PlannedPart> parts = PlanPairs(config, tensors, base, checks, problems);
  std::vector<PlannedPart> replacements =
      PlanReplacements(config, tensors, parts, checks, problems);
  std::move(replacements.begin(), replacements.end(), std::back_inserter(parts));
  // Tensors that were refused are no further news.
  if (tensors.pairs.empty() && (header.tensors.empty() || !problems.has_errors())) {
    checks.Refuse({.what = "holds no LoRA pair at all"});
  }
  if (parts.empty()) return std::nullopt;
  WeightsPlan plan = Assemble(config, tensors, std::move(parts));
  plan.manifest.format = IsCreated(header) ? AdapterFormat::kCreated : AdapterFormat::kPeft;
  return plan;
}

}  // namespace adapterd
