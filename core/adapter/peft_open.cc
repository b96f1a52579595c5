#include "core/adapter/peft_open.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "core/adapter/peft_checks.h"
#include "core/adapter/peft_config.h"
#include "core/adapter/peft_plan.h"
#include "core/adapter/plan_parts.h"
#include "core/adapter/source_folder.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

// What the plan asks of the base; `names` and `model` outlive it.
BaseFacts FactsOf(const BaseNames& names, const BaseTensors& model) {
  BaseFacts facts;
  facts.experts_are_in_out = HasTransposedExperts(model.geometry());
  facts.shape_of = [&names](std::string_view path) -> std::optional<Shape> {
    const auto found = names.Find(path, "");
    if (found.size() != 1) return std::nullopt;
    return found[0]->shape;
  };
  return facts;
}

// A name that ends as PEFT's or mlx-lm's do.
bool IsFactorName(const SafetensorsEntry& tensor) {
  for (const std::string_view part : {".lora_", ".vera_"}) {
    if (tensor.name.find(part) != std::string::npos) return true;
  }
  return false;
}

// What a folder without a config lacks: the config, or tensors that any format explains.
void ReportNoConfig(const SourceFiles& files, ProblemList& problems) {
  const auto* const tensors = files.header ? &files.header->tensors : nullptr;
  if (tensors == nullptr || tensors->empty() ||
      std::any_of(tensors->begin(), tensors->end(), IsFactorName)) {
    problems.Add(Error(Reason::kSourceNotFound,
                       fmt::format("folder {} holds no {}", Quoted(files.folder), kConfigFileName))
                     .With("file", Printable(files.folder)));
    return;
  }
  TensorChecks(Printable(files.weights->name()), problems)
      .Refuse({.tensor = &tensors->front(),
               .what = fmt::format("is named as no format does that is read (and there is no {} "
                                   "beside it)",
                                   kConfigFileName)});
}

}  // namespace

std::optional<WeightsPlan> PlanPeft(const SourceFiles& files, const SourceSpec& spec,
                                    const BaseTensors* base, ProblemList& problems) {
  // Weights that cannot be read do not tell that a config is missing, either.
  const bool unreadable = files.weights && !files.header;
  if (!files.has_config && !unreadable) ReportNoConfig(files, problems);
  if (!files.json) return std::nullopt;
  auto config = ReadPeftConfig(*files.json, Printable(files.config->name()), problems);
  if (!config) return std::nullopt;
  CheckBaseModel(spec.base_model, config->file, "base_model_name_or_path", config->base_model,
                 problems);
  if (!files.header) return std::nullopt;
  std::optional<BaseNames> names;
  std::optional<BaseFacts> facts;
  if (base != nullptr) {
    names.emplace(base->tensors());
    facts = FactsOf(*names, *base);
  }
  return BuildPeftPlan(*config, *files.header, Printable(files.weights->name()),
                       facts ? &*facts : nullptr, problems);
}

}  // namespace adapterd
