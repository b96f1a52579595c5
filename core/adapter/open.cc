#include <fmt/format.h>

#include <utility>

#include "core/adapter/adapter_reader.h"
#include "core/adapter/base_model.h"
#include "core/adapter/peft_config.h"
#include "core/adapter/peft_plan.h"
#include "core/adapter/peft_reader.h"
#include "core/adapter/source_folder.h"
#include "core/base/quote.h"
#include "core/formats/safetensors.h"

namespace adapterd {
namespace {

absl::Status SingleFileError(const std::string& source) {
  if (IsPickleName(source)) {
    return Error(Reason::kUnsafeFormat,
                 fmt::format("{} is pickled, which can run code when it is opened: convert it to "
                             "safetensors",
                             Quoted(source)))
        .With("file", Printable(source));
  }
  return Error(Reason::kUnsupportedAdapter,
               fmt::format("{} is a file: single-file formats are not read yet, name the folder "
                           "that holds it beside its {}",
                           Quoted(source), kConfigFileName))
      .With("file", Printable(source));
}

// Adds the error and gives nullopt when there is none to give.
template <typename T>
std::optional<T> TakeOrReport(absl::StatusOr<T> value, ProblemList& problems) {
  if (value.ok()) return *std::move(value);
  problems.Add(value.status());
  return std::nullopt;
}

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

BindOptions OptionsOf(const PeftConfig& config) {
  BindOptions options;
  options.fan_in_fan_out = config.fan_in_fan_out;
  for (const auto& [start, end] : config.layer_replication) {
    options.layer_replication.push_back({start, end});
  }
  return options;
}

void WarnWithoutBase(const AdapterManifest& manifest, ProblemList& problems) {
  if (manifest.method != "dora") return;
  Problem problem;
  problem.severity = Severity::kWarning;
  problem.reason = Reason::kBaseRequired;
  problem.field = "base_checkpoint";
  problem.message = "without base_checkpoint this DoRA adapter can be merged, but not applied";
  problems.Add(std::move(problem));
}

// Null when the spec names no base model, or after an error.
std::shared_ptr<const BaseTensors> OpenBase(const SourceSpec& spec, const SourceRoots& models,
                                            const HostedBaseFinder& hosted,
                                            ProblemList& problems) {
  if (!spec.base_checkpoint.empty()) return BaseModel::Open(models, spec.base_checkpoint, problems);
  if (spec.hosted_base.empty()) return nullptr;
  absl::StatusOr<std::shared_ptr<const BaseTensors>> found =
      Error(Reason::kBaseModelNotFound, "no base model is held here");
  if (hosted != nullptr) found = hosted(spec.hosted_base);
  if (found.ok()) return *std::move(found);
  problems.Add(Annotate(found.status(), "field", "hosted_base"));
  return nullptr;
}

// Everything that opening found, before the two files are held against each other.
struct OpenFiles {
  InputFile config_file;
  PeftConfig config;
  InputFile weights;
  SafetensorsHeader header;
};

std::optional<OpenFiles> OpenPeftFiles(const SourceFolder& folder, const SourceSpec& spec,
                                       ProblemList& problems) {
  const AdapterFiles files = ChooseAdapterFiles(folder, problems);
  std::optional<InputFile> config_file;
  std::optional<PeftConfig> config;
  if (!files.config.empty()) {
    config_file = TakeOrReport(folder.OpenFile(files.config), problems);
  }
  if (config_file) {
    const auto text = TakeOrReport(ReadSmallFile(*config_file, kMaxConfigBytes), problems);
    if (text) config = ParsePeftConfig(*text, Printable(config_file->name()), problems);
    if (config) CheckBaseModel(spec, *config, problems);
  }
  std::optional<InputFile> weights;
  std::optional<SafetensorsHeader> header;
  if (!files.weights.empty()) weights = TakeOrReport(folder.OpenFile(files.weights), problems);
  if (weights) header = TakeOrReport(ReadSafetensorsHeader(*weights), problems);
  if (!config || !header) return std::nullopt;
  return OpenFiles{*std::move(config_file), *std::move(config), *std::move(weights),
                   *std::move(header)};
}

std::unique_ptr<AdapterReader> OpenFolder(const SourceFolder& folder, const SourceSpec& spec,
                                          const SourceRoots& models,
                                          const HostedBaseFinder& hosted, ProblemList& problems) {
  std::optional<BoundBase> base;
  std::optional<BaseNames> names;
  std::optional<BaseFacts> facts;
  if (auto model = OpenBase(spec, models, hosted, problems)) {
    names.emplace(model->tensors());
    facts = FactsOf(*names, *model);
    base.emplace().model = std::move(model);
  }
  std::optional<OpenFiles> files = OpenPeftFiles(folder, spec, problems);
  if (!files) return nullptr;
  auto plan = BuildPeftPlan(files->config, files->header, Printable(files->weights.name()),
                            facts ? &*facts : nullptr, problems);
  if (!plan) return nullptr;
  plan->manifest.file_bytes = files->weights.size();
  if (base) {
    base->bindings =
        BindToBase(plan->manifest.modules, *base->model, OptionsOf(files->config), problems);
  } else if (!spec.has_base()) {
    WarnWithoutBase(plan->manifest, problems);
  }
  return std::make_unique<PeftReader>(*std::move(plan), std::move(files->config_file),
                                      std::move(files->weights), std::move(base));
}

// `source` is below one of `roots`.
std::unique_ptr<AdapterReader> OpenSource(const SourceRoots& roots, const std::string& source,
                                          const SourceRoots& models,
                                          const HostedBaseFinder& hosted, const SourceSpec& spec,
                                          ProblemList& problems) {
  const auto is_file = TakeOrReport(roots.IsFile(source), problems);
  if (!is_file) return nullptr;
  if (*is_file) {
    problems.Add(SingleFileError(source));
    return nullptr;
  }
  const auto folder = TakeOrReport(OpenAdapterFolder(roots, source), problems);
  if (!folder) return nullptr;
  return OpenFolder(*folder, spec, models, hosted, problems);
}

}  // namespace

AdapterOpener OpenFromRoots(std::shared_ptr<const SourceRoots> adapters,
                            std::shared_ptr<const SourceRoots> models,
                            std::shared_ptr<const SourceRoots> stored, HostedBaseFinder hosted) {
  return [adapters = std::move(adapters), models = std::move(models), stored = std::move(stored),
          hosted = std::move(hosted)](const SourceSpec& spec,
                                      ProblemList& problems) -> std::unique_ptr<AdapterReader> {
    if (spec.stored.empty()) {
      return OpenSource(*adapters, spec.source, *models, hosted, spec, problems);
    }
    if (stored != nullptr) {
      return OpenSource(*stored, spec.stored, *models, hosted, spec, problems);
    }
    problems.Add(Error(Reason::kSourceNotFound,
                       fmt::format("{} was uploaded, and nothing that was uploaded is stored here",
                                   Quoted(spec.stored))));
    return nullptr;
  };
}

}  // namespace adapterd
