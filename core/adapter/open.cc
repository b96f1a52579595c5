#include <fmt/format.h>

#include <utility>

#include "core/adapter/adapter_reader.h"
#include "core/adapter/base_model.h"
#include "core/adapter/diffusers_plan.h"
#include "core/adapter/gguf_plan.h"
#include "core/adapter/kohya_plan.h"
#include "core/adapter/mlx_plan.h"
#include "core/adapter/peft_open.h"
#include "core/adapter/source_files.h"
#include "core/adapter/source_folder.h"
#include "core/adapter/weights_reader.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

absl::Status PickledFile(const std::string& source) {
  return Error(Reason::kUnsafeFormat,
               fmt::format("{} is pickled, which can run code when it is opened: convert it to "
                           "safetensors",
                           Quoted(source)))
      .With("file", Printable(source));
}

// A file by its name, or the folder that holds an adapter; with the names of its files.
absl::StatusOr<std::pair<SourceFolder, AdapterFiles>> FindFiles(const SourceRoots& roots,
                                                                const std::string& source,
                                                                ProblemList& problems) {
  ASSIGN_OR_RETURN(const bool is_file, roots.IsFile(source));
  if (is_file && IsPickleName(source)) return PickledFile(source);
  ASSIGN_OR_RETURN(SourceFolder folder,
                   is_file ? roots.OpenFolder(source) : OpenAdapterFolder(roots, source));
  AdapterFiles files = is_file ? FilesOf(folder) : ChooseAdapterFiles(folder, problems);
  return std::pair(std::move(folder), std::move(files));
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
                                            const HostedBaseFinder& hosted, ProblemList& problems) {
  if (!spec.base_checkpoint.empty()) return BaseModel::Open(models, spec.base_checkpoint, problems);
  if (spec.hosted_base.empty()) return nullptr;
  absl::StatusOr<std::shared_ptr<const BaseTensors>> found =
      Error(Reason::kBaseModelNotFound, "no base model is held here");
  if (hosted != nullptr) found = hosted(spec.hosted_base);
  if (found.ok()) return *std::move(found);
  problems.Add(Annotate(found.status(), "field", "hosted_base"));
  return nullptr;
}

// What the format's own reader makes of the files; `base` may be null.
std::optional<WeightsPlan> PlanWeights(const SourceFiles& files, const SourceSpec& spec,
                                       const BaseTensors* base, ProblemList& problems) {
  const GgufHeads heads =
      FindGgufHeads(spec.head_counts, base == nullptr ? nullptr : &base->geometry(), problems);
  std::optional<WeightsPlan> plan;
  switch (DetectFormat(files)) {
    case AdapterFormat::kGguf:
      plan = PlanGguf(files, spec.base_model, heads, problems);
      break;
    case AdapterFormat::kMlx:
      plan = PlanMlx(files, spec, problems);
      break;
    case AdapterFormat::kKohya:
      plan = PlanKohya(files, spec, base, problems);
      break;
    case AdapterFormat::kDiffusers:
      plan = PlanDiffusers(files, spec, problems);
      break;
    default:
      plan = PlanPeft(files, spec, base, problems);
  }
  if (!plan) return std::nullopt;
  plan->manifest.file_bytes = files.weights->size();
  plan->manifest.head_counts = heads.counts;
  return plan;
}

// `source` is below one of `roots`.
std::unique_ptr<AdapterReader> OpenSource(const SourceRoots& roots, const std::string& source,
                                          const SourceRoots& models, const HostedBaseFinder& hosted,
                                          const SourceSpec& spec, ProblemList& problems) {
  const auto found = FindFiles(roots, source, problems);
  if (!found.ok()) {
    problems.Add(found.status());
    return nullptr;
  }
  std::optional<BoundBase> base;
  if (auto model = OpenBase(spec, models, hosted, problems)) {
    base.emplace().model = std::move(model);
  }
  ProblemList of_weights;
  SourceFiles files = OpenSourceFiles(found->first, found->second, problems, of_weights);
  auto plan = PlanWeights(files, spec, base ? base->model.get() : nullptr, problems);
  for (const Problem& problem : of_weights.items()) problems.Add(problem);
  if (!plan) return nullptr;
  if (base) {
    base->bindings = BindToBase(plan->manifest.modules, *base->model, plan->bind, problems);
  } else if (!spec.has_base()) {
    WarnWithoutBase(plan->manifest, problems);
  }
  return std::make_unique<WeightsReader>(*std::move(plan), std::move(files.config),
                                         *std::move(files.weights), std::move(base));
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
