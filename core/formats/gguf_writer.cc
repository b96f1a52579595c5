#include <fmt/format.h>

#include <set>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/formats/gguf.h"

namespace adapterd {
namespace {

constexpr uint32_t kVersion = 3;
// Numbers: enum gguf_type.
constexpr uint32_t kUint32Value = 4;
constexpr uint32_t kFloat32Value = 6;
constexpr uint32_t kStringValue = 8;

template <typename T>
void Append(T value, std::string& out) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void AppendText(std::string_view text, std::string& out) {
  Append<uint64_t>(text.size(), out);
  out.append(text);
}

void AppendValue(const GgufKeyValue& value, std::string& out) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    Append(kStringValue, out);
    AppendText(*text, out);
  } else if (const auto* number = std::get_if<float>(&value)) {
    Append(kFloat32Value, out);
    Append(*number, out);
  } else {
    Append(kUint32Value, out);
    Append(std::get<uint32_t>(value), out);
  }
}

Error InvalidTensor(std::string_view name, std::string_view problem) {
  return Error(Reason::kInvalidField, fmt::format("tensor {}: {}", Quoted(name), problem))
      .With("tensor", Printable(name));
}

absl::Status CheckTensor(const GgufSpec& tensor) {
  if (tensor.name.size() >= kMaxGgmlNameBytes) {
    return InvalidTensor(tensor.name,
                         fmt::format("llama.cpp reads names of less than {} bytes, this one has {}",
                                     kMaxGgmlNameBytes, tensor.name.size()));
  }
  if (tensor.shape.empty() || tensor.shape.size() > kMaxGgufDims) {
    return InvalidTensor(tensor.name, fmt::format("has {} dimensions", tensor.shape.size()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GgufLayout> LayOutGguf(
    const std::vector<GgufSpec>& tensors,
    const std::vector<std::pair<std::string, GgufKeyValue>>& metadata) {
  GgufLayout layout;
  std::string& start = layout.start;
  start.append(kGgufMagic);
  Append(kVersion, start);
  Append<uint64_t>(tensors.size(), start);
  Append<uint64_t>(metadata.size(), start);
  for (const auto& [key, value] : metadata) {
    AppendText(key, start);
    AppendValue(value, start);
  }
  std::set<std::string_view> names;
  int64_t offset = 0;
  for (const GgufSpec& tensor : tensors) {
    RETURN_IF_ERROR(CheckTensor(tensor));
    if (!names.insert(tensor.name).second) return InvalidTensor(tensor.name, "is there twice");
    ASSIGN_OR_RETURN(const int64_t bytes, GgufByteCount(tensor.type, tensor.shape));
    AppendText(tensor.name, start);
    Append(static_cast<uint32_t>(tensor.shape.size()), start);
    for (size_t i = tensor.shape.size(); i-- > 0;) {
      Append(static_cast<uint64_t>(tensor.shape[i]), start);
    }
    Append(static_cast<uint32_t>(tensor.type), start);
    Append(static_cast<uint64_t>(offset), start);
    const int64_t padding = RoundUp(bytes, kDefaultGgufAlignment) - bytes;
    layout.padding.push_back(padding);
    offset += bytes + padding;
  }
  start.resize(RoundUp<size_t>(start.size(), kDefaultGgufAlignment), '\0');
  layout.file_bytes = static_cast<int64_t>(start.size()) + offset;
  return layout;
}

}  // namespace adapterd
