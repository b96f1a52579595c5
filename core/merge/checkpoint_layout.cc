#include "core/merge/checkpoint_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/formats/safetensors.h"

namespace adapterd {
namespace {

// Of a tensor's entry in a header, on top of its name: keys, type, offsets and a shape.
constexpr int64_t kEntryBytes = 256;

using Groups = std::vector<std::vector<size_t>>;  // the plan's tensors, file by file

// In the order of the source, an untied head behind what it is a copy of.
std::vector<size_t> SourceOrder(const CheckpointPlan& plan) {
  std::vector<size_t> order(plan.tensors.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::sort(order, {}, [&](size_t i) {
    const OutputTensor& tensor = plan.tensors[i];
    return std::tuple(tensor.source->file, tensor.source->offset, i);
  });
  return order;
}

Groups BySource(const CheckpointPlan& plan, const std::vector<size_t>& order) {
  Groups groups;
  for (const size_t i : order) {
    const bool begins = groups.empty() ||
                        plan.tensors[groups.back()[0]].source->file != plan.tensors[i].source->file;
    if (begins) groups.emplace_back();
    groups.back().push_back(i);
  }
  return groups;
}

absl::StatusOr<Groups> BySize(const CheckpointPlan& plan, const std::vector<size_t>& order,
                              int64_t max_bytes) {
  Groups groups;
  int64_t filled = 0;
  for (const size_t i : order) {
    const OutputTensor& tensor = plan.tensors[i];
    ASSIGN_OR_RETURN(int64_t bytes, ByteCount(tensor.dtype, tensor.shape));
    bytes += static_cast<int64_t>(tensor.name.size()) + kEntryBytes;
    if (groups.empty() || bytes > max_bytes - filled) {
      groups.emplace_back();
      filled = kEntryBytes;  // the metadata
    }
    filled += bytes;
    groups.back().push_back(i);
  }
  return groups;
}

absl::Status CheckCount(const Groups& groups) {
  if (groups.size() <= kMaxCheckpointShards) return absl::OkStatus();
  return Error(Reason::kInvalidField,
               fmt::format("max_shard_bytes: the output would have {} files, more than the {} that "
                           "a checkpoint may have",
                           groups.size(), kMaxCheckpointShards))
      .With("field", "max_shard_bytes")
      .With("expected", fmt::format("at most {} files", kMaxCheckpointShards))
      .With("actual", fmt::format("{} files", groups.size()));
}

std::string BaseName(std::string_view path) {
  return std::string(path.substr(path.rfind('/') + 1));
}

// Those of the source, unless there are other groups or names that differ only by folder.
std::vector<std::string> FileNames(const CheckpointPlan& plan, const Checkpoint& source,
                                   const Groups& groups, bool by_source) {
  std::vector<std::string> names;
  for (const std::vector<size_t>& group : groups) {
    names.push_back(BaseName(source.files()[plan.tensors[group[0]].source->file].name()));
  }
  if (by_source && std::set(names.begin(), names.end()).size() == names.size()) return names;
  if (groups.size() == 1) return {std::string(kCheckpointFileName)};
  for (size_t i = 0; i < names.size(); ++i) {
    names[i] = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, groups.size());
  }
  return names;
}

std::string IndexOf(const CheckpointPlan& plan, const CheckpointLayout& layout) {
  nlohmann::json map = nlohmann::json::object();
  int64_t parameters = 0;
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    map[plan.tensors[i].name] = layout.files[layout.places[i].file].name;
    parameters += *ElementCount(plan.tensors[i].shape);
  }
  const nlohmann::json index = {
      {"metadata", {{"total_parameters", parameters}, {"total_size", layout.bytes}}},
      {"weight_map", std::move(map)}};
  return index.dump(2) + "\n";
}

absl::Status AddFile(const CheckpointPlan& plan, const Checkpoint& source, std::string name,
                     const std::vector<size_t>& group, CheckpointLayout& layout) {
  std::vector<SafetensorsSpec> specs;
  for (const size_t i : group) {
    specs.push_back({plan.tensors[i].name, plan.tensors[i].dtype, plan.tensors[i].shape});
  }
  ASSIGN_OR_RETURN(const SafetensorsHeader header,
                   ReadSafetensorsHeader(source.files()[plan.tensors[group[0]].source->file]));
  ASSIGN_OR_RETURN(SafetensorsLayout file, LayOutSafetensors(specs, header.metadata));
  auto offset = static_cast<int64_t>(file.start.size());
  for (const size_t in_group : file.order) {
    const size_t i = group[in_group];
    ASSIGN_OR_RETURN(const int64_t bytes, ByteCount(plan.tensors[i].dtype, plan.tensors[i].shape));
    layout.places[i] = {layout.files.size(), offset, bytes};
    layout.order.push_back(i);
    layout.bytes += bytes;
    offset += bytes;
  }
  layout.files.push_back({std::move(name), std::move(file.start), file.file_bytes});
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CheckpointLayout> LayOutCheckpoint(const CheckpointPlan& plan,
                                                  const Checkpoint& source,
                                                  int64_t max_shard_bytes) {
  const std::vector<size_t> order = SourceOrder(plan);
  const bool by_source = max_shard_bytes == 0;
  Groups groups = BySource(plan, order);
  if (!by_source) {
    ASSIGN_OR_RETURN(groups, BySize(plan, order, max_shard_bytes));
    RETURN_IF_ERROR(CheckCount(groups));
  }
  std::vector<std::string> names = FileNames(plan, source, groups, by_source);
  CheckpointLayout layout;
  layout.places.resize(plan.tensors.size());
  for (size_t i = 0; i < groups.size(); ++i) {
    RETURN_IF_ERROR(AddFile(plan, source, std::move(names[i]), groups[i], layout));
  }
  const bool is_alone = layout.files.size() == 1 && layout.files[0].name == kCheckpointFileName;
  if (!is_alone) layout.index = IndexOf(plan, layout);
  return layout;
}

}  // namespace adapterd
