// An adapter on disk as PEFT saves it, for a server to load.
#ifndef ADAPTERD_BENCH_PEFT_FOLDER_H_
#define ADAPTERD_BENCH_PEFT_FOLDER_H_

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/data.h"
#include "bench/temporary_folder.h"

namespace adapterd::bench {

// The modules of an adapter that is made of factors, which all of them have.
inline constexpr const char* kPeftModules[] = {"model.layers.0.self_attn.q_proj",
                                               "model.layers.0.self_attn.k_proj",
                                               "model.layers.0.self_attn.v_proj"};

// A pair to be: what it maps to what.
struct PeftModule {
  std::string path;
  int64_t in_features = 0;
  int64_t out_features = 0;
};

// All linear layers of a Llama of 7B: 14 tensors a layer.
std::vector<PeftModule> Llama7bModules(int layers);
// Those that most adapters have, query and value.
std::vector<PeftModule> Llama7bQueryValueModules(int layers);
// Small experts, two modules and so four tensors each.
std::vector<PeftModule> ExpertModules(int layers, int experts);

inline constexpr char kPeftWeights[] = "adapter_model.safetensors";

// Makes the folder `path` and writes an adapter of the first so many of kPeftModules into it.
absl::Status WritePeftAdapter(const std::filesystem::path& path, const Factors& factors,
                              int modules = 1);

// One adapter in a temporary folder of its own.
class PeftFolder {
 public:
  // With all of kPeftModules.
  static absl::StatusOr<std::unique_ptr<PeftFolder>> Create(const Factors& factors);
  // Tensors of random numbers, of which those of one shape share theirs.
  static absl::StatusOr<std::unique_ptr<PeftFolder>> Create(const std::vector<PeftModule>& modules,
                                                            DType dtype, int64_t rank);

  const std::filesystem::path& root() const { return root_->path(); }  // holds the adapter's folder
  std::string adapter() const { return "bench"; }                      // its name below root()
  std::filesystem::path weights() const { return root() / adapter() / kPeftWeights; }

 private:
  explicit PeftFolder(std::unique_ptr<TemporaryFolder> root) : root_(std::move(root)) {}

  const std::unique_ptr<TemporaryFolder> root_;
};

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_PEFT_FOLDER_H_
