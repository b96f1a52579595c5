#include "core/formats/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/formats/safetensors.h"
#include "core/formats/safetensors_json.h"

namespace adapterd {
namespace {

// A message names no more files than this.
constexpr size_t kMaxNamedFiles = 5;

bool IsPickledWeights(std::string_view name) {
  // pytorch_model.bin, its shards and their index; consolidated.00.pth; model.ckpt.
  return (name.starts_with("pytorch_model") && name.find(".bin") != std::string_view::npos) ||
         name.ends_with(".pth") || name.ends_with(".ckpt");
}

std::string NameSome(const std::vector<std::string_view>& names) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMaxNamedFiles); ++i) {
    text += (i == 0 ? "" : ", ") + Quoted(names[i]);
  }
  if (names.size() > kMaxNamedFiles) {
    text += fmt::format(" and {} more", names.size() - kMaxNamedFiles);
  }
  return text;
}

absl::Status NoWeights(const SourceFolder& folder) {
  const auto fail = [&](Reason reason, const std::string& what) {
    return Error(reason, fmt::format("folder {} {}", Quoted(folder.path()), what))
        .With("file", Printable(folder.path()));
  };
  if (folder.entries().empty()) return fail(Reason::kSourceNotFound, "is empty");
  std::vector<std::string_view> pickles;
  std::vector<std::string_view> others;
  for (const std::string& name : folder.entries()) {
    if (IsPickledWeights(name)) pickles.push_back(name);
    if (name.ends_with(".safetensors")) others.push_back(name);
  }
  const std::string expected =
      fmt::format("expected {} or {}", kCheckpointFileName, kCheckpointIndexName);
  if (!others.empty()) {
    return fail(Reason::kSourceNotFound,
                fmt::format("holds no checkpoint: {}, found {}", expected, NameSome(others)));
  }
  if (!pickles.empty()) {
    return fail(Reason::kUnsafeFormat,
                fmt::format("holds only pickled weights ({}), which can run code when they are "
                            "opened: convert them to safetensors",
                            NameSome(pickles)));
  }
  return fail(Reason::kSourceNotFound, fmt::format("holds no checkpoint: {}", expected));
}

absl::StatusOr<std::string> ReadIndex(const InputFile& file) {
  if (file.size() > kMaxCheckpointIndexBytes) {
    return MalformedFile(file.name(), fmt::format("has {} bytes, more than the {} allowed",
                                                  file.size(), kMaxCheckpointIndexBytes))
        .With("expected", fmt::format("at most {} bytes", kMaxCheckpointIndexBytes))
        .With("actual", fmt::format("{} bytes", file.size()));
  }
  return ReadSmallFile(file, kMaxCheckpointIndexBytes);
}

absl::StatusOr<InputFile> OpenShard(const SourceFolder& folder, const std::string& name,
                                    std::string_view index_name) {
  auto file = folder.OpenFile(name);
  if (file.ok() || GetErrorDetails(file.status()).reason != Reason::kSourceNotFound) return file;
  const absl::string_view why = file.status().message();
  return Error(Reason::kSourceNotFound,
               fmt::format("{} names this shard: {}", Quoted(index_name), std::string{why}))
      .With("file", Printable(folder.path() + "/" + name));
}

}  // namespace

absl::StatusOr<Checkpoint> Checkpoint::Open(const SourceFolder& folder) {
  Checkpoint checkpoint;
  if (folder.Has(kCheckpointFileName)) {
    ASSIGN_OR_RETURN(InputFile file, folder.OpenFile(kCheckpointFileName));
    RETURN_IF_ERROR(checkpoint.AddFile(std::move(file)));
    RETURN_IF_ERROR(checkpoint.SortTensors());
    return checkpoint;
  }
  if (!folder.Has(kCheckpointIndexName)) return NoWeights(folder);
  RETURN_IF_ERROR(checkpoint.OpenShards(folder));
  return checkpoint;
}

absl::Status Checkpoint::OpenShards(const SourceFolder& folder) {
  ASSIGN_OR_RETURN(InputFile index_file, folder.OpenFile(kCheckpointIndexName));
  ASSIGN_OR_RETURN(const std::string text, ReadIndex(index_file));
  ASSIGN_OR_RETURN(const CheckpointIndex index, ParseCheckpointIndex(text, index_file.name()));
  for (const std::string& name : index.files) {
    ASSIGN_OR_RETURN(InputFile file, OpenShard(folder, name, index_file.name()));
    RETURN_IF_ERROR(AddFile(std::move(file)));
  }
  RETURN_IF_ERROR(SortTensors());
  RETURN_IF_ERROR(CheckAgainst(index, index_file.name()));
  files_.push_back(std::move(index_file));
  return absl::OkStatus();
}

absl::Status Checkpoint::AddFile(InputFile file) {
  ASSIGN_OR_RETURN(SafetensorsHeader header, ReadSafetensorsHeader(file));
  if (header.tensors.size() > kMaxCheckpointTensors - tensors_.size()) {
    return MalformedFile(file.name(), fmt::format("brings the checkpoint to more than {} tensors",
                                                  kMaxCheckpointTensors));
  }
  for (SafetensorsEntry& entry : header.tensors) {
    tensors_.push_back({std::move(entry.name), files_.size(), entry.dtype, std::move(entry.shape),
                        entry.offset, entry.bytes});
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status Checkpoint::SortTensors() {
  std::sort(tensors_.begin(), tensors_.end(),
            [](const CheckpointTensor& a, const CheckpointTensor& b) {
              return std::tie(a.name, a.file) < std::tie(b.name, b.file);
            });
  const auto twin = std::adjacent_find(
      tensors_.begin(), tensors_.end(),
      [](const CheckpointTensor& a, const CheckpointTensor& b) { return a.name == b.name; });
  if (twin == tensors_.end()) return absl::OkStatus();
  return MalformedTensor(
      files_[twin->file].name(), twin->name,
      fmt::format("is in {}, too", Quoted(files_[std::next(twin)->file].name())));
}

absl::Status Checkpoint::CheckAgainst(const CheckpointIndex& index,
                                      std::string_view index_name) const {
  for (const auto& [tensor, file] : index.places) {
    const CheckpointTensor* found = Find(tensor);
    if (found != nullptr && found->file == file) continue;
    return MalformedTensor(files_[file].name(), tensor,
                           fmt::format("is missing here, where {} says it is", Quoted(index_name)));
  }
  return absl::OkStatus();
}

const CheckpointTensor* FindTensor(const std::vector<CheckpointTensor>& tensors,
                                   std::string_view name) {
  const auto found = std::lower_bound(
      tensors.begin(), tensors.end(), name,
      [](const CheckpointTensor& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return found == tensors.end() || found->name != name ? nullptr : &*found;
}

std::vector<std::pair<std::string, FileIdentity>> Checkpoint::identity() const {
  std::vector<std::pair<std::string, FileIdentity>> states;
  states.reserve(files_.size());
  for (const InputFile& file : files_) states.emplace_back(file.name(), file.identity());
  return states;
}

absl::Status Checkpoint::CheckUnchanged() const {
  for (const InputFile& file : files_) RETURN_IF_ERROR(file.CheckUnchanged());
  return absl::OkStatus();
}

absl::Status Checkpoint::ReadRows(const CheckpointTensor& tensor, int64_t row_elements,
                                  int64_t first_row, std::span<std::byte> out) const {
  const auto refuse = [&](std::string_view what) {
    return Error(Reason::kShapeMismatch,
                 fmt::format("tensor {} {} {}: {}", Quoted(tensor.name), DTypeName(tensor.dtype),
                             Printable(ShapeString(tensor.shape)), what))
        .With("tensor", Printable(tensor.name))
        .With("file", Printable(files_[tensor.file].name()));
  };
  const auto bits = CheckedMul<int64_t>(row_elements, BitsOf(tensor.dtype));
  if (!bits || *bits <= 0 || *bits % 8 != 0) {
    return refuse(fmt::format("rows of {} elements are not whole bytes", row_elements));
  }
  const int64_t row_bytes = *bits / 8;
  const auto wanted = static_cast<int64_t>(out.size());
  if (wanted % row_bytes != 0) {
    return refuse(fmt::format("{} bytes are not whole rows of {} bytes", wanted, row_bytes));
  }
  const auto begin = CheckedMul(first_row, row_bytes);
  if (!begin || *begin < 0 || *begin > tensor.bytes || wanted > tensor.bytes - *begin) {
    return refuse(fmt::format("has {} rows of {} elements, asked for {} from {} on",
                              tensor.bytes / row_bytes, row_elements, wanted / row_bytes,
                              first_row));
  }
  return files_[tensor.file].ReadAt(tensor.offset + *begin, out);
}

}  // namespace adapterd
