#include "core/adapter/base_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// The roots call what they open "source", whoever asked for it.
void AddForField(const absl::Status& status, const std::string& field, ProblemList& problems) {
  ProblemList one;
  one.Add(status);
  for (Problem problem : one.items()) {
    problem.field = field;
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

// A name may hold any character: its length says where it ends.
std::string Fingerprint(const std::optional<std::string>& config, const Checkpoint& checkpoint) {
  Sha256 of_config;
  of_config.Update(config.value_or(""));
  Sha256 digest;
  digest.Update(fmt::format("adapterd-base-v1\n{}\n", config ? of_config.FinishHex() : "none"));
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    digest.Update(fmt::format("{}\t{}\t{}\t{}\n", tensor.name.size(), tensor.name,
                              DTypeName(tensor.dtype),
                              fmt::join(tensor.shape.begin(), tensor.shape.end(), "x")));
  }
  return digest.FinishHex();
}

}  // namespace

std::unique_ptr<const BaseModel> BaseModel::Open(const SourceRoots& roots,
                                                 const std::string& source, ProblemList& problems,
                                                 const std::string& field) {
  const auto fail = [&](const absl::Status& status) {
    AddForField(status, field, problems);
    return nullptr;
  };
  const auto folder = OpenFolder(roots, source);
  if (!folder.ok()) return fail(folder.status());
  auto checkpoint = Checkpoint::Open(*folder);
  if (!checkpoint.ok()) return fail(checkpoint.status());
  std::optional<InputFile> config;
  std::optional<std::string> config_text;
  BaseGeometry geometry;
  if (folder->Has(kBaseConfigFileName)) {
    auto file = folder->OpenFile(kBaseConfigFileName);
    if (!file.ok()) return fail(file.status());
    auto text = ReadSmallFile(*file, kMaxBaseConfigBytes);
    if (!text.ok()) return fail(text.status());
    config_text = *std::move(text);
    auto parsed = ParseBaseGeometry(*config_text, Printable(file->name()), problems);
    if (!parsed) return nullptr;
    geometry = *std::move(parsed);
    config = *std::move(file);
  }
  std::string fingerprint = Fingerprint(config_text, *checkpoint);
  return std::unique_ptr<const BaseModel>(new BaseModel(source, field, *std::move(checkpoint),
                                                        std::move(config), std::move(geometry),
                                                        std::move(fingerprint)));
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
