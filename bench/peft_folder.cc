#include "bench/peft_folder.h"

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/base/status_macros.h"
#include "core/formats/safetensors.h"

namespace adapterd::bench {
namespace {

SafetensorsTensor Named(const char* factor, const Tensor& tensor) {
  return {std::string("base_model.model.") + kPeftModule + "." + factor + ".weight", tensor.dtype(),
          tensor.shape(), tensor.bytes()};
}

std::string Config(const Factors& factors) {
  const auto rank = static_cast<double>(factors.a_view().rows);
  const nlohmann::ordered_json config = {{"peft_type", "LORA"},
                                         {"task_type", "CAUSAL_LM"},
                                         {"base_model_name_or_path", "bench/model"},
                                         {"r", factors.a_view().rows},
                                         {"lora_alpha", factors.scale * rank},
                                         {"lora_dropout", 0.0},
                                         {"bias", "none"},
                                         {"fan_in_fan_out", false},
                                         {"target_modules", {"q_proj"}}};
  return config.dump();
}

absl::Status Write(const std::filesystem::path& file, std::string_view content) {
  std::ofstream stream(file, std::ios::binary);
  stream.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (stream.flush()) return absl::OkStatus();
  return absl::UnavailableError("cannot write " + file.string());
}

}  // namespace

absl::StatusOr<std::unique_ptr<PeftFolder>> PeftFolder::Create(const Factors& factors) {
  std::string pattern = std::filesystem::temp_directory_path() / "adapterd-bench-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) return absl::ErrnoToStatus(errno, pattern);
  std::unique_ptr<PeftFolder> folder(new PeftFolder(pattern));
  const std::filesystem::path adapter = folder->root() / folder->adapter();
  std::error_code error;
  if (!std::filesystem::create_directory(adapter, error)) {
    return absl::UnavailableError("cannot make " + adapter.string());
  }
  ASSIGN_OR_RETURN(const std::string weights,
                   SerializeSafetensors({Named("lora_A", factors.a), Named("lora_B", factors.b)},
                                        {{"format", "pt"}}));
  RETURN_IF_ERROR(Write(adapter / "adapter_model.safetensors", weights));
  RETURN_IF_ERROR(Write(adapter / "adapter_config.json", Config(factors)));
  return folder;
}

PeftFolder::~PeftFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(root_, ignored);
}

}  // namespace adapterd::bench
