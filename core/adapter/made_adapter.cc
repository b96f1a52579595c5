#include "core/adapter/made_adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/adapter/peft_export_config.h"
#include "core/adapter/peft_keys.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/formats/safetensors.h"

namespace adapterd {
namespace {

constexpr std::string_view kPrefix = "base_model.model.";
// The longest that is added to a path.
constexpr std::string_view kSuffix = ".lora_magnitude_vector";

bool IsControl(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte < 0x20 || byte == 0x7f;
}

bool HasEmptyComponent(std::string_view path) {
  return path.empty() || path.front() == '.' || path.back() == '.' ||
         path.find("..") != std::string_view::npos;
}

// Whether a file that names the module's tensors means this module, with PEFT's prefix or without.
bool IsReadAs(std::string_view path) {
  for (const std::string_view prefix : {kPrefix, std::string_view()}) {
    for (const std::string_view part : {".lora_A.weight", ".lora_embedding_A", ".weight"}) {
      if (ParsePeftKey(fmt::format("{}{}{}", prefix, path, part)).module != path) return false;
    }
  }
  return true;
}

}  // namespace

absl::Status CheckModulePath(std::string_view path, const std::string& field) {
  const auto dots = static_cast<size_t>(std::count(path.begin(), path.end(), '.'));
  const bool fits = path.size() + kPrefix.size() + kSuffix.size() <= kMaxTensorNameBytes &&
                    dots + 5 <= kMaxPathComponents;  // with prefix and suffix
  const bool is_plain =
      !HasEmptyComponent(path) && std::none_of(path.begin(), path.end(), IsControl);
  if (fits && is_plain && IsReadAs(path)) return absl::OkStatus();
  return Error(Reason::kInvalidField,
               fmt::format("{}: expected the path of a module in the base model, without "
                           "base_model.model. and names that PEFT gives to parts of an adapter, "
                           "found {}",
                           field, Quoted(path)))
      .With("field", field)
      .With("module", Printable(path));
}

AdapterManifest ManifestOfPairs(std::vector<ModuleInfo> pairs, bool use_rslora) {
  AdapterManifest manifest;
  manifest.format = AdapterFormat::kCreated;
  manifest.method = use_rslora ? "rslora" : "lora";
  manifest.peft.use_rslora = use_rslora;
  manifest.modules = std::move(pairs);
  std::sort(manifest.modules.begin(), manifest.modules.end(),
            [](const ModuleInfo& x, const ModuleInfo& y) { return x.path < y.path; });
  std::vector<std::string> paths;
  for (ModuleInfo& module : manifest.modules) {
    const auto rank = static_cast<double>(module.rank);
    module.scale = module.alpha / (use_rslora ? std::sqrt(rank) : rank);
    paths.push_back(module.path);
  }
  manifest.index = ModuleIndex(paths);
  for (size_t i = 0; i < manifest.modules.size(); ++i) {
    std::string lora_a = PeftTensorName(manifest, i, TensorRole::kLoraA);
    std::string lora_b = PeftTensorName(manifest, i, TensorRole::kLoraB);
    manifest.modules[i].lora_a_tensor = std::move(lora_a);
    manifest.modules[i].lora_b_tensor = std::move(lora_b);
  }
  return manifest;
}

}  // namespace adapterd
