#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>
#include <tuple>
#include <utility>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/formats/safetensors.h"

namespace adapterd {
namespace {

constexpr size_t kAlignment = 8;

Error InvalidTensor(std::string_view name, std::string_view problem) {
  return Error(Reason::kInvalidField, fmt::format("tensor {}: {}", Quoted(name), problem))
      .With("tensor", Printable(name));
}

// Nothing is written that our own reader would refuse. Returns the size of its data.
absl::StatusOr<int64_t> CheckTensor(const SafetensorsSpec& tensor) {
  if (tensor.name == "__metadata__") return InvalidTensor(tensor.name, "is a reserved name");
  if (tensor.name.size() > kMaxTensorNameBytes) {
    return InvalidTensor(tensor.name, fmt::format("has a name of {} bytes, more than {}",
                                                  tensor.name.size(), kMaxTensorNameBytes));
  }
  if (tensor.shape.size() > kMaxTensorDims) {
    return InvalidTensor(tensor.name, fmt::format("has more than {} dimensions", kMaxTensorDims));
  }
  auto bytes = ByteCount(tensor.dtype, tensor.shape);
  if (bytes.ok()) return bytes;
  return InvalidTensor(tensor.name, fmt::format("{} {} is no size", DTypeName(tensor.dtype),
                                                Printable(ShapeString(tensor.shape))));
}

absl::StatusOr<std::string> JsonString(std::string_view text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const std::exception&) {
    return Error(Reason::kInvalidField, fmt::format("{} is not UTF-8", Quoted(text)));
  }
}

absl::Status AppendMetadata(const std::map<std::string, std::string>& metadata,
                            std::string& header) {
  if (metadata.size() > kMaxSafetensorsMetadata) {
    return Error(Reason::kInvalidField,
                 fmt::format("metadata has more than {} keys", kMaxSafetensorsMetadata));
  }
  header.append("\"__metadata__\":{");
  for (const auto& [key, value] : metadata) {
    ASSIGN_OR_RETURN(const std::string key_json, JsonString(key));
    ASSIGN_OR_RETURN(const std::string value_json, JsonString(value));
    if (header.back() != '{') header.push_back(',');
    header.append(key_json).append(":").append(value_json);
  }
  header.push_back('}');
  return absl::OkStatus();
}

absl::Status CheckNamesDiffer(const std::vector<SafetensorsSpec>& tensors) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const SafetensorsSpec& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twin = std::adjacent_find(names.begin(), names.end());
  if (twin == names.end()) return absl::OkStatus();
  return InvalidTensor(*twin, "is there twice");
}

// The JSON, padded so that the data begin on a multiple of 8, and the size of the data.
absl::StatusOr<std::pair<std::string, int64_t>> MakeHeader(
    const std::vector<SafetensorsSpec>& tensors, const std::vector<size_t>& order,
    const std::map<std::string, std::string>& metadata) {
  std::string header = "{";
  if (!metadata.empty()) RETURN_IF_ERROR(AppendMetadata(metadata, header));
  int64_t begin = 0;
  for (const size_t i : order) {
    const SafetensorsSpec& tensor = tensors[i];
    ASSIGN_OR_RETURN(const int64_t bytes, CheckTensor(tensor));
    const auto end = CheckedAdd(begin, bytes);
    if (!end) return InvalidTensor(tensor.name, "does not fit in any file");
    ASSIGN_OR_RETURN(const std::string name, JsonString(tensor.name));
    if (header.size() > 1) header.push_back(',');
    fmt::format_to(std::back_inserter(header),
                   R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", name,
                   DTypeName(tensor.dtype),
                   fmt::join(tensor.shape.begin(), tensor.shape.end(), ","), begin, *end);
    begin = *end;
  }
  header.push_back('}');
  header.resize(RoundUp(header.size(), kAlignment), ' ');
  if (static_cast<int64_t>(header.size()) > kMaxSafetensorsHeaderBytes) {
    return Error(Reason::kInvalidField, fmt::format("the header would have {} bytes, more than {}",
                                                    header.size(), kMaxSafetensorsHeaderBytes));
  }
  return std::pair(std::move(header), begin);
}

}  // namespace

absl::StatusOr<SafetensorsLayout> LayOutSafetensors(
    const std::vector<SafetensorsSpec>& tensors,
    const std::map<std::string, std::string>& metadata) {
  if (static_cast<int64_t>(tensors.size()) > kMaxSafetensorsTensors) {
    return Error(Reason::kInvalidField,
                 fmt::format("more than {} tensors", kMaxSafetensorsTensors));
  }
  RETURN_IF_ERROR(CheckNamesDiffer(tensors));
  SafetensorsLayout layout;
  layout.order.resize(tensors.size());
  std::iota(layout.order.begin(), layout.order.end(), 0);
  std::sort(layout.order.begin(), layout.order.end(), [&](size_t a, size_t b) {
    return std::tie(tensors[b].dtype, tensors[a].name) <
           std::tie(tensors[a].dtype, tensors[b].name);
  });
  ASSIGN_OR_RETURN(const auto header, MakeHeader(tensors, layout.order, metadata));
  const auto& [json, data_bytes] = header;
  for (size_t i = 0; i < kAlignment; ++i) {
    layout.start.push_back(static_cast<char>(json.size() >> 8 * i));
  }
  layout.start.append(json);
  layout.file_bytes = static_cast<int64_t>(layout.start.size()) + data_bytes;
  return layout;
}

absl::StatusOr<std::string> SerializeSafetensors(
    const std::vector<SafetensorsTensor>& tensors,
    const std::map<std::string, std::string>& metadata) {
  const std::vector<SafetensorsSpec> specs(tensors.begin(), tensors.end());
  ASSIGN_OR_RETURN(SafetensorsLayout layout, LayOutSafetensors(specs, metadata));
  for (const SafetensorsTensor& tensor : tensors) {
    const auto bytes = ByteCount(tensor.dtype, tensor.shape);
    if (bytes.ok() && *bytes == static_cast<int64_t>(tensor.data.size())) continue;
    return InvalidTensor(
        tensor.name, fmt::format("{} bytes of data are not {} {}", tensor.data.size(),
                                 DTypeName(tensor.dtype), Printable(ShapeString(tensor.shape))));
  }
  std::string file = std::move(layout.start);
  file.reserve(static_cast<size_t>(layout.file_bytes));
  for (const size_t i : layout.order) {
    file.append(reinterpret_cast<const char*>(tensors[i].data.data()), tensors[i].data.size());
  }
  return file;
}

}  // namespace adapterd
