#include "core/adapter/peft_open.h"

#include <fmt/format.h>

#include <string_view>

#include "core/adapter/peft_config.h"
#include "core/adapter/peft_plan.h"
#include "core/adapter/source_folder.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

void CheckBaseModel(const SourceSpec& spec, PeftConfig& config, ProblemList& problems) {
  if (spec.base_model.empty()) return;
  if (config.base_model.empty()) config.base_model = spec.base_model;
  if (config.base_model == spec.base_model) return;
  problems.Add(
      Error(Reason::kBaseModelMismatch,
            fmt::format("{} was trained for base model {}, not for {}", Printable(config.file),
                        Quoted(config.base_model), Quoted(spec.base_model)))
          .With("file", config.file)
          .With("field", "base_model_name_or_path")
          .With("expected", Printable(spec.base_model))
          .With("actual", Printable(config.base_model)));
}

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

absl::Status NoConfig(const SourceFiles& files) {
  return Error(Reason::kSourceNotFound,
               fmt::format("folder {} holds no {}", Quoted(files.folder), kConfigFileName))
      .With("file", Printable(files.folder));
}

}  // namespace

std::optional<WeightsPlan> PlanPeft(const SourceFiles& files, const SourceSpec& spec,
                                    const BaseTensors* base, ProblemList& problems) {
  // Weights that cannot be read do not tell that a config is missing, either.
  const bool unreadable = files.weights && !files.header;
  if (!files.has_config && !unreadable) problems.Add(NoConfig(files));
  if (!files.json) return std::nullopt;
  auto config = ReadPeftConfig(*files.json, Printable(files.config->name()), problems);
  if (!config) return std::nullopt;
  CheckBaseModel(spec, *config, problems);
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
