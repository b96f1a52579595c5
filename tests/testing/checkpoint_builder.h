// Writes small checkpoints of base models.
#ifndef ADAPTERD_TESTS_TESTING_CHECKPOINT_BUILDER_H_
#define ADAPTERD_TESTS_TESTING_CHECKPOINT_BUILDER_H_

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/formats/safetensors.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {

// A folder with model.safetensors, or with several files and their index. Byte i of a tensor is
// `i + number of the tensor`, so that every place of every file is told apart.
class CheckpointBuilder {
 public:
  CheckpointBuilder& Add(const std::string& name, Shape shape, DType dtype = DType::kF32,
                         const std::string& file = "model.safetensors") {
    int64_t elements = 1;
    for (const int64_t dim : shape) elements *= dim;
    std::string bytes(elements * BitsOf(dtype) / 8, '\0');
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i + count_);
    return AddBytes(name, std::move(shape), dtype, std::move(bytes), file);
  }

  // With these bytes instead.
  CheckpointBuilder& AddBytes(const std::string& name, Shape shape, DType dtype, std::string bytes,
                              const std::string& file = "model.safetensors") {
    ++count_;
    weight_map_[name] = file;
    files_[file].push_back({name, std::move(shape), dtype, std::move(bytes)});
    return *this;
  }

  // What the index says; by default the truth.
  CheckpointBuilder& Map(const std::string& tensor, const std::string& file) {
    weight_map_[tensor] = file;
    return *this;
  }

  const CheckpointBuilder& Write(const TempDir& dir, const std::string& folder) const {
    for (const auto& [file, tensors] : files_) {
      dir.Write(fmt::format("{}/{}", folder, file), FileOf(tensors));
    }
    if (files_.contains("model.safetensors")) return *this;
    const nlohmann::json index = {{"metadata", {{"total_size", 1}}}, {"weight_map", weight_map_}};
    dir.Write(folder + "/model.safetensors.index.json", index.dump());
    return *this;
  }

 private:
  struct OwnedTensor {
    std::string name;
    Shape shape;
    DType dtype;
    std::string bytes;
  };

  static std::string FileOf(const std::vector<OwnedTensor>& owned) {
    std::vector<SafetensorsTensor> tensors;
    tensors.reserve(owned.size());
    for (const OwnedTensor& tensor : owned) {
      tensors.push_back({tensor.name, tensor.dtype, tensor.shape,
                         std::as_bytes(std::span<const char>(tensor.bytes))});
    }
    return SerializeSafetensors(std::move(tensors), {{"format", "pt"}}).value();
  }

  std::map<std::string, std::vector<OwnedTensor>> files_;
  std::map<std::string, std::string> weight_map_;
  size_t count_ = 0;
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_CHECKPOINT_BUILDER_H_
