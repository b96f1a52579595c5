#include "bench/peft_folder.h"

#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/base/status_macros.h"
#include "core/formats/safetensors.h"

namespace adapterd::bench {
namespace {

constexpr float kTrainedFactor = 0.05f;

SafetensorsTensor Named(std::string_view path, std::string_view factor, const Tensor& tensor) {
  return {fmt::format("base_model.model.{}.{}.weight", path, factor), tensor.dtype(),
          tensor.shape(), tensor.bytes()};
}

std::string Config(int64_t rank, double alpha, const std::set<std::string>& targets) {
  const nlohmann::ordered_json config = {
      {"peft_type", "LORA"}, {"task_type", "CAUSAL_LM"}, {"base_model_name_or_path", "bench/model"},
      {"r", rank},           {"lora_alpha", alpha},      {"lora_dropout", 0.0},
      {"bias", "none"},      {"fan_in_fan_out", false},  {"target_modules", targets}};
  return config.dump();
}

std::string LastComponent(const std::string& path) { return path.substr(path.rfind('.') + 1); }

absl::Status WriteFile(const std::filesystem::path& file, std::string_view content) {
  std::ofstream stream(file, std::ios::binary);
  stream.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (stream.flush()) return absl::OkStatus();
  return absl::UnavailableError("cannot write " + file.string());
}

absl::Status WriteAdapter(const std::filesystem::path& path, std::vector<SafetensorsTensor> tensors,
                          int64_t rank, double alpha, const std::set<std::string>& targets) {
  std::error_code error;
  if (!std::filesystem::create_directory(path, error)) {
    return absl::UnavailableError("cannot make " + path.string());
  }
  ASSIGN_OR_RETURN(const std::string weights,
                   SerializeSafetensors(std::move(tensors), {{"format", "pt"}}));
  RETURN_IF_ERROR(WriteFile(path / kPeftWeights, weights));
  return WriteFile(path / "adapter_config.json", Config(rank, alpha, targets));
}

}  // namespace

std::vector<PeftModule> Llama7bModules(int layers) {
  constexpr int64_t kHidden = 4096;
  constexpr int64_t kIntermediate = 11008;
  std::vector<PeftModule> modules;
  for (int layer = 0; layer < layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    for (const std::string_view target : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      modules.push_back({fmt::format("{}self_attn.{}", prefix, target), kHidden, kHidden});
    }
    modules.push_back({prefix + "mlp.gate_proj", kHidden, kIntermediate});
    modules.push_back({prefix + "mlp.up_proj", kHidden, kIntermediate});
    modules.push_back({prefix + "mlp.down_proj", kIntermediate, kHidden});
  }
  return modules;
}

std::vector<PeftModule> Llama7bQueryValueModules(int layers) {
  std::vector<PeftModule> modules = Llama7bModules(layers);
  std::erase_if(modules, [](const PeftModule& module) {
    const std::string target = LastComponent(module.path);
    return target != "q_proj" && target != "v_proj";
  });
  return modules;
}

std::vector<PeftModule> ExpertModules(int layers, int experts) {
  constexpr int64_t kFeatures = 256;
  std::vector<PeftModule> modules;
  for (int layer = 0; layer < layers; ++layer) {
    for (int expert = 0; expert < experts; ++expert) {
      for (const std::string_view target : {"gate_proj", "up_proj"}) {
        modules.push_back({fmt::format("model.layers.{}.mlp.experts.{}.{}", layer, expert, target),
                           kFeatures, kFeatures});
      }
    }
  }
  return modules;
}

absl::Status WritePeftAdapter(const std::filesystem::path& path, const Factors& factors,
                              int modules) {
  const int64_t rank = factors.a_view().rows;
  std::vector<SafetensorsTensor> tensors;
  std::set<std::string> targets;
  for (const char* module : std::span(kPeftModules).first(modules)) {
    tensors.push_back(Named(module, "lora_A", factors.a));
    tensors.push_back(Named(module, "lora_B", factors.b));
    targets.insert(LastComponent(module));
  }
  return WriteAdapter(path, std::move(tensors), rank, factors.scale * static_cast<double>(rank),
                      targets);
}

absl::StatusOr<std::unique_ptr<PeftFolder>> PeftFolder::Create(const Factors& factors) {
  ASSIGN_OR_RETURN(auto root, TemporaryFolder::Create());
  std::unique_ptr<PeftFolder> folder(new PeftFolder(std::move(root)));
  RETURN_IF_ERROR(WritePeftAdapter(folder->root() / folder->adapter(), factors,
                                   static_cast<int>(std::size(kPeftModules))));
  return folder;
}

absl::StatusOr<std::unique_ptr<PeftFolder>> PeftFolder::Create(
    const std::vector<PeftModule>& modules, DType dtype, int64_t rank) {
  std::map<std::pair<int64_t, int64_t>, Tensor> matrices;  // by rows and columns
  const auto matrix = [&](int64_t rows, int64_t cols) -> const Tensor& {
    const auto [found, is_new] = matrices.try_emplace({rows, cols});
    if (is_new) found->second = RandomMatrix(dtype, rows, cols, kTrainedFactor, matrices.size());
    return found->second;
  };
  std::vector<SafetensorsTensor> tensors;
  std::set<std::string> targets;
  for (const PeftModule& module : modules) {
    tensors.push_back(Named(module.path, "lora_A", matrix(rank, module.in_features)));
    tensors.push_back(Named(module.path, "lora_B", matrix(module.out_features, rank)));
    targets.insert(LastComponent(module.path));
  }
  ASSIGN_OR_RETURN(auto root, TemporaryFolder::Create());
  std::unique_ptr<PeftFolder> folder(new PeftFolder(std::move(root)));
  RETURN_IF_ERROR(WriteAdapter(folder->root() / folder->adapter(), std::move(tensors), rank,
                               2 * static_cast<double>(rank), targets));
  return folder;
}

}  // namespace adapterd::bench
