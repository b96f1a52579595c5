#include "core/adapter/source_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// By falling preference: PEFT, mlx-lm, diffusers.
constexpr std::string_view kWeightNames[] = {"adapter_model.safetensors", "adapters.safetensors",
                                             "pytorch_lora_weights.safetensors"};

// A warning names no more files than this.
constexpr size_t kMaxNamedFiles = 5;

// What a trainer's checkpoint folder holds beside the weights.
bool IsTrainerState(std::string_view name) {
  for (const std::string_view begin :
       {"training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states"}) {
    if (name.starts_with(begin)) return true;
  }
  return false;
}

std::string NameSome(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMaxNamedFiles); ++i) {
    text += (i == 0 ? "" : ", ") + Quoted(names[i]);
  }
  if (names.size() > kMaxNamedFiles) {
    text += fmt::format(" and {} more", names.size() - kMaxNamedFiles);
  }
  return text;
}

struct FoundWeights {
  std::vector<std::string> safetensors;
  std::vector<std::string> pickles;
  std::vector<std::string> ggufs;
};

FoundWeights FindWeights(const SourceFolder& folder) {
  FoundWeights found;
  for (const std::string& name : folder.entries()) {
    if (name.ends_with(".safetensors")) {
      found.safetensors.push_back(name);
    } else if (name.ends_with(".gguf")) {
      found.ggufs.push_back(name);
    } else if (IsPickleName(name) && !IsTrainerState(name)) {
      found.pickles.push_back(name);
    }
  }
  return found;
}

Problem FolderProblem(Reason reason, const SourceFolder& folder, std::string_view what) {
  Problem problem;
  problem.reason = reason;
  problem.file = Printable(folder.path());
  problem.message = fmt::format("folder {} {}", Quoted(folder.path()), what);
  return problem;
}

Problem NoWeights(const SourceFolder& folder, const FoundWeights& found) {
  const auto& several = found.safetensors.empty() ? found.ggufs : found.safetensors;
  if (several.size() > 1) {
    return FolderProblem(Reason::kSourceNotFound, folder,
                         fmt::format("holds {}, none of them called {}: name the file",
                                     NameSome(several), kWeightNames[0]));
  }
  if (!found.pickles.empty()) {
    return FolderProblem(Reason::kUnsafeFormat, folder,
                         fmt::format("holds only pickled weights ({}), which can run code when "
                                     "they are opened: convert them to safetensors",
                                     NameSome(found.pickles)));
  }
  return FolderProblem(Reason::kSourceNotFound, folder,
                       fmt::format("holds no weights: expected {}", kWeightNames[0]));
}

std::string ChooseWeights(const SourceFolder& folder, const FoundWeights& found) {
  for (const std::string_view name : kWeightNames) {
    if (folder.Has(name)) return std::string(name);
  }
  const auto& only = found.safetensors.empty() ? found.ggufs : found.safetensors;
  return only.size() == 1 ? only[0] : "";
}

void WarnOfOthers(const SourceFolder& folder, const FoundWeights& found, std::string_view chosen,
                  ProblemList& problems) {
  std::vector<std::string> others;
  for (const auto* names : {&found.safetensors, &found.pickles, &found.ggufs}) {
    for (const std::string& name : *names) {
      if (name != chosen) others.push_back(name);
    }
  }
  if (others.empty()) return;
  Problem problem =
      FolderProblem(Reason::kSourceNotFound, folder,
                    fmt::format("holds other weights that were left alone: {}", NameSome(others)));
  problem.severity = Severity::kWarning;
  problems.Add(std::move(problem));
}

// Its own weights go before what subfolders hold.
bool HoldsWhatNeedsNoConfig(const SourceFolder& folder) {
  const auto& names = folder.entries();
  return folder.Has(kWeightNames[2]) ||
         std::any_of(names.begin(), names.end(),
                     [](const std::string& name) { return name.ends_with(".gguf"); });
}

}  // namespace

bool IsPickleName(std::string_view name) {
  for (const std::string_view end : {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}) {
    if (name.ends_with(end)) return true;
  }
  return false;
}

absl::StatusOr<SourceFolder> OpenAdapterFolder(const SourceRoots& roots,
                                               const std::string& source) {
  ASSIGN_OR_RETURN(SourceFolder folder, roots.OpenFolder(source));
  if (folder.Has(kConfigFileName) || HoldsWhatNeedsNoConfig(folder)) return folder;
  std::vector<SourceFolder> adapters;
  std::vector<std::string> names;
  for (size_t i = 0; i < std::min(folder.entries().size(), kMaxSubfolders); ++i) {
    const std::string& name = folder.entries()[i];
    auto subfolder = roots.OpenFolder(fmt::format("{}/{}", source, name));
    if (!subfolder.ok() || !subfolder->Has(kConfigFileName)) continue;
    adapters.push_back(*std::move(subfolder));
    names.push_back(name);
  }
  if (adapters.size() == 1) return std::move(adapters[0]);
  if (adapters.empty()) return folder;
  return Error(Reason::kSourceNotFound,
               fmt::format("folder {} holds several adapters ({}): name the folder of one",
                           Quoted(folder.path()), NameSome(names)))
      .With("file", Printable(folder.path()));
}

AdapterFiles FilesOf(const SourceFolder& file) {
  AdapterFiles files;
  files.weights = file.entries().front();
  if (file.OpenFile(kConfigFileName).ok()) files.config = std::string(kConfigFileName);
  return files;
}

AdapterFiles ChooseAdapterFiles(const SourceFolder& folder, ProblemList& problems) {
  AdapterFiles files;
  if (folder.entries().empty()) {
    problems.Add(FolderProblem(Reason::kSourceNotFound, folder, "is empty"));
    return files;
  }
  const FoundWeights found = FindWeights(folder);
  files.weights = ChooseWeights(folder, found);
  if (files.weights.empty()) {
    problems.Add(NoWeights(folder, found));
  } else {
    WarnOfOthers(folder, found, files.weights, problems);
  }
  if (folder.Has(kConfigFileName)) {
    files.config = std::string(kConfigFileName);
  }
  return files;
}

}  // namespace adapterd
