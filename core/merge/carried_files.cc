#include "core/merge/carried_files.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/adapter/config_json.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/merge/certificate.h"

namespace adapterd {
namespace {

// Weights, by the ends of their files' names.
constexpr std::string_view kWeights[] = {".safetensors", ".bin",  ".pt",        ".pth",
                                         ".ckpt",        ".gguf", ".h5",        ".msgpack",
                                         ".npz",         ".onnx", ".onnx_data", ".index.json"};

std::string_view TorchName(DType dtype) {
  if (dtype == DType::kF32) return "float32";
  return dtype == DType::kF16 ? "float16" : "bfloat16";
}

// In the config itself and in that of its language model, wherever the key is.
bool Set(ConfigJson& config, const char* key, const ConfigJson& value) {
  bool found = false;
  for (ConfigJson* part :
       {&config, config.contains("text_config") ? &config["text_config"] : nullptr}) {
    if (part == nullptr || !part->is_object() || !part->contains(key)) continue;
    (*part)[key] = value;
    found = true;
  }
  return found;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> CarriedFiles(const SourceFolder& folder) {
  std::vector<std::string> names;
  for (const std::string& name : folder.entries()) {
    const bool is_weights =
        std::ranges::any_of(kWeights, [&](std::string_view end) { return name.ends_with(end); });
    if (is_weights || name.front() == '.' || name == kCertificateName) continue;
    names.push_back(name);
  }
  if (names.size() <= kMaxCarriedFiles) return names;
  return Error(Reason::kInvalidField,
               fmt::format("source: the folder holds {} files beside its weights, more than the {} "
                           "that go along with a checkpoint",
                           names.size(), kMaxCarriedFiles))
      .With("field", "source")
      .With("expected", fmt::format("at most {} files", kMaxCarriedFiles))
      .With("actual", fmt::format("{} files", names.size()));
}

absl::Status CheckNotQuantised(std::string_view config) {
  const absl::StatusOr<ConfigJson> json = ParseConfigJson(config);
  if (!json.ok() || !json->contains("quantization_config")) return absl::OkStatus();
  const ConfigJson& quantization = (*json)["quantization_config"];
  if (!quantization.is_object() || quantization.empty()) return absl::OkStatus();
  const std::string method = quantization.contains("quant_method")
                                 ? Shown(quantization["quant_method"])
                                 : std::string("an unnamed method");
  return Error(Reason::kUnsupportedDtype,
               fmt::format("config.json says that the weights are quantised (quantization_config, "
                           "by {}): merge into the checkpoint that they were made from",
                           Printable(method)))
      .With("field", "source")
      .With("expected", "F32, F16 or BF16")
      .With("actual", Printable(method));
}

absl::StatusOr<std::string> ChangedConfig(const std::string& config, const CheckpointPlan& plan,
                                          std::optional<DType> dtype) {
  if (!plan.vocab_size && !plan.untied && !dtype) return config;
  absl::StatusOr<ConfigJson> json = ParseConfigJson(config);
  if (!json.ok()) {
    return Error(Reason::kMalformedConfig,
                 fmt::format("config.json has to be changed, and cannot be: {}",
                             std::string(json.status().message())))
        .With("file", "config.json");
  }
  if (plan.vocab_size && !Set(*json, "vocab_size", *plan.vocab_size)) {
    (*json)["vocab_size"] = *plan.vocab_size;
  }
  if (plan.untied && !Set(*json, "tie_word_embeddings", false)) {
    (*json)["tie_word_embeddings"] = false;
  } else if (plan.untied) {
    (*json)["tie_word_embeddings"] = false;  // the head belongs to the whole model
  }
  if (dtype) {
    const bool has_new = Set(*json, "dtype", TorchName(*dtype));
    const bool has_old = Set(*json, "torch_dtype", TorchName(*dtype));
    if (!has_new && !has_old) (*json)["torch_dtype"] = TorchName(*dtype);
  }
  return json->dump(2) + "\n";
}

}  // namespace adapterd
