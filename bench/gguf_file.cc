#include "bench/gguf_file.h"

#include <fmt/format.h>

#include <fstream>
#include <map>
#include <string_view>

#include "bench/data.h"
#include "core/adapter/gguf_names.h"
#include "core/base/status_macros.h"
#include "core/tensor/q8_0.h"

namespace adapterd::bench {
namespace {

constexpr float kTrainedFactor = 0.05f;
constexpr char kArchitecture[] = "llama";

// Random F16 values, or blocks of Q8_0 of which they are scales and bytes.
Tensor RandomData(GgufType type, int64_t rows, int64_t cols, uint64_t seed) {
  if (type == GgufType::kF16) return RandomMatrix(DType::kF16, rows, cols, kTrainedFactor, seed);
  return RandomMatrix(DType::kF16, rows * cols / kQ8BlockElements, kQ8BlockBytes / 2,
                      kTrainedFactor / 127, seed);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Create(const std::vector<PeftModule>& modules,
                                                           GgufType type, int64_t rank) {
  const GgufArchitecture& architecture = *FindGgufArchitecture(kArchitecture);
  std::map<std::pair<int64_t, int64_t>, Tensor> matrices;  // by rows and columns
  std::vector<GgufSpec> specs;
  std::vector<const Tensor*> data;
  const auto add = [&](std::string name, int64_t rows, int64_t cols) {
    const auto [found, is_new] = matrices.try_emplace({rows, cols});
    if (is_new) found->second = RandomData(type, rows, cols, matrices.size());
    specs.push_back({std::move(name), type, {rows, cols}});
    data.push_back(&found->second);
  };
  for (const PeftModule& module : modules) {
    const std::string tensor = GgufTensorOf(architecture, module.path).value();
    add(tensor + ".lora_a", rank, module.in_features);
    add(tensor + ".lora_b", module.out_features, rank);
  }
  ASSIGN_OR_RETURN(const GgufLayout layout,
                   LayOutGguf(specs, {{"general.architecture", std::string(kArchitecture)},
                                      {"general.type", std::string("adapter")},
                                      {"adapter.type", std::string("lora")},
                                      {"adapter.lora.alpha", 2 * static_cast<float>(rank)}}));
  ASSIGN_OR_RETURN(auto root, TemporaryFolder::Create());
  std::unique_ptr<GgufFile> file(new GgufFile(std::move(root)));
  std::ofstream stream(file->weights(), std::ios::binary);
  stream.write(layout.start.data(), static_cast<std::streamsize>(layout.start.size()));
  for (size_t i = 0; i < data.size(); ++i) {
    const auto bytes = data[i]->bytes();
    stream.write(reinterpret_cast<const char*>(bytes.data()),
                 static_cast<std::streamsize>(bytes.size()));
    stream << std::string(layout.padding[i], '\0');
  }
  if (stream.flush()) return file;
  return absl::UnavailableError("cannot write " + file->weights().string());
}

}  // namespace adapterd::bench
