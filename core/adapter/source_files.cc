#include "core/adapter/source_files.h"

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <utility>

#include "core/adapter/diffusers_keys.h"
#include "core/adapter/kohya_keys.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// Enough to tell GGUF from safetensors, whose header begins at byte 8 with '{'.
constexpr size_t kStartBytes = 9;

// Adds the error and gives nullopt when there is none to give.
template <typename T>
std::optional<T> TakeOrReport(absl::StatusOr<T> value, ProblemList& problems) {
  if (value.ok()) return *std::move(value);
  problems.Add(value.status());
  return std::nullopt;
}

// A file that is called GGUF and does not look like safetensors is one that has a wrong magic.
absl::StatusOr<bool> IsGguf(const InputFile& file) {
  std::array<char, kStartBytes> buffer{};
  const std::string_view start(buffer.data(), std::min<int64_t>(kStartBytes, file.size()));
  RETURN_IF_ERROR(file.ReadAt(0, std::as_writable_bytes(std::span(buffer).first(start.size()))));
  return start.starts_with(kGgufMagic) || (file.name().ends_with(".gguf") && buffer.back() != '{');
}

bool HasKey(const SourceFiles& files, std::string_view key) {
  return files.json && files.json->ok() && (**files.json).contains(key);
}

bool HasTensor(const SourceFiles& files, bool (*matches)(std::string_view)) {
  if (!files.header) return false;
  const auto& tensors = files.header->tensors;
  return std::any_of(tensors.begin(), tensors.end(),
                     [matches](const SafetensorsEntry& entry) { return matches(entry.name); });
}

}  // namespace

SourceFiles OpenSourceFiles(const SourceFolder& folder, const AdapterFiles& chosen,
                            ProblemList& problems, ProblemList& of_weights) {
  SourceFiles files;
  files.folder = folder.path();
  if (!chosen.weights.empty()) {
    files.weights = TakeOrReport(folder.OpenFile(chosen.weights), of_weights);
  }
  if (files.weights) {
    const auto is_gguf = TakeOrReport(IsGguf(*files.weights), of_weights);
    files.is_gguf = is_gguf.value_or(false);
    if (files.is_gguf) return files;
    if (is_gguf) files.header = TakeOrReport(ReadSafetensorsHeader(*files.weights), of_weights);
  }
  files.has_config = !chosen.config.empty();
  if (!files.has_config) return files;
  files.config = TakeOrReport(folder.OpenFile(chosen.config), problems);
  if (!files.config) return files;
  const auto text = TakeOrReport(ReadSmallFile(*files.config, kMaxConfigBytes), problems);
  if (text) files.json = ParseConfigJson(*text);
  return files;
}

AdapterFormat DetectFormat(const SourceFiles& files) {
  if (files.is_gguf) return AdapterFormat::kGguf;
  if (HasKey(files, "peft_type")) return AdapterFormat::kPeft;
  if (HasKey(files, "fine_tune_type") || HasKey(files, "lora_parameters")) {
    return AdapterFormat::kMlx;
  }
  if (HasTensor(files, IsKohyaName)) return AdapterFormat::kKohya;
  if (files.header && files.header->metadata.contains(kDiffusersMetadata)) {
    return AdapterFormat::kDiffusers;
  }
  if (HasTensor(files, IsDiffusersName)) return AdapterFormat::kDiffusers;
  return AdapterFormat::kPeft;
}

}  // namespace adapterd
