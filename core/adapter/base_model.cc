#include "core/adapter/base_model.h"

#include <fmt/format.h>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

constexpr std::string_view kField = "base_checkpoint";

// The roots call what they open "source", whoever asked for it.
void AddForField(const absl::Status& status, ProblemList& problems) {
  ProblemList one;
  one.Add(status);
  for (Problem problem : one.items()) {
    problem.field = std::string(kField);
    problems.Add(std::move(problem));
  }
}

absl::StatusOr<SourceFolder> OpenFolder(const SourceRoots& roots, const std::string& source) {
  ASSIGN_OR_RETURN(const bool is_file, roots.IsFile(source));
  if (!is_file) return roots.OpenFolder(source);
  return Error(Reason::kSourceNotFound,
               fmt::format("{} is a file: a checkpoint is named by the folder that holds it",
                           Quoted(source)))
      .With("file", Printable(source));
}

}  // namespace

std::unique_ptr<const BaseModel> BaseModel::Open(const SourceRoots& roots,
                                                 const std::string& source, ProblemList& problems) {
  const auto fail = [&](const absl::Status& status) {
    AddForField(status, problems);
    return nullptr;
  };
  const auto folder = OpenFolder(roots, source);
  if (!folder.ok()) return fail(folder.status());
  auto checkpoint = Checkpoint::Open(*folder);
  if (!checkpoint.ok()) return fail(checkpoint.status());
  std::optional<InputFile> config;
  BaseGeometry geometry;
  if (folder->Has(kBaseConfigFileName)) {
    auto file = folder->OpenFile(kBaseConfigFileName);
    if (!file.ok()) return fail(file.status());
    const auto text = ReadSmallFile(*file, kMaxBaseConfigBytes);
    if (!text.ok()) return fail(text.status());
    auto parsed = ParseBaseGeometry(*text, Printable(file->name()), problems);
    if (!parsed) return nullptr;
    geometry = *std::move(parsed);
    config = *std::move(file);
  }
  return std::unique_ptr<const BaseModel>(
      new BaseModel(source, *std::move(checkpoint), std::move(config), std::move(geometry)));
}

std::vector<std::pair<std::string, FileIdentity>> BaseModel::identity() const {
  auto states = checkpoint_.identity();
  if (config_) states.emplace_back(config_->name(), config_->identity());
  return states;
}

absl::Status BaseModel::CheckUnchanged() const {
  if (config_) RETURN_IF_ERROR(config_->CheckUnchanged());
  return checkpoint_.CheckUnchanged();
}

}  // namespace adapterd
