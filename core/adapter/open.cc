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

std::unique_ptr<AdapterReader> OpenFolder(const SourceFolder& folder, const SourceSpec& spec,
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
  if (!config || !header) return nullptr;
  auto plan = BuildPeftPlan(*config, *header, Printable(weights->name()), nullptr, problems);
  if (!plan) return nullptr;
  plan->manifest.file_bytes = weights->size();
  return std::make_unique<PeftReader>(*std::move(plan), *std::move(config_file),
                                      *std::move(weights), nullptr);
}

std::unique_ptr<AdapterReader> OpenSource(const SourceRoots& roots, const SourceSpec& spec,
                                          ProblemList& problems) {
  const auto is_file = TakeOrReport(roots.IsFile(spec.source), problems);
  if (!is_file) return nullptr;
  if (*is_file) {
    problems.Add(SingleFileError(spec.source));
    return nullptr;
  }
  const auto folder = TakeOrReport(roots.OpenFolder(spec.source), problems);
  if (!folder) return nullptr;
  return OpenFolder(*folder, spec, problems);
}

}  // namespace

AdapterOpener OpenFromRoots(std::shared_ptr<const SourceRoots> adapters,
                            std::shared_ptr<const SourceRoots> models) {
  return [adapters = std::move(adapters), models = std::move(models)](const SourceSpec& spec,
                                                                      ProblemList& problems) {
    return OpenSource(*adapters, spec, problems);
  };
}

}  // namespace adapterd
