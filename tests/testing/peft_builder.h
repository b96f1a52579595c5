// Writes small PEFT adapters, and knows what they compute.
#ifndef ADAPTERD_TESTS_TESTING_PEFT_BUILDER_H_
#define ADAPTERD_TESTS_TESTING_PEFT_BUILDER_H_

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/formats/safetensors.h"
#include "core/tensor/convert.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {

// `values` rounded to `dtype`, as bytes and back.
inline std::string BytesOf(DType dtype, const std::vector<float>& values) {
  std::string bytes(values.size() * FloatBytes(dtype), '\0');
  ConvertFromF32(values.data(), dtype, reinterpret_cast<std::byte*>(bytes.data()),
                 static_cast<int64_t>(values.size()));
  return bytes;
}

inline std::vector<float> FloatsOf(DType dtype, const std::string& bytes) {
  std::vector<float> values(bytes.size() / FloatBytes(dtype));
  ConvertToF32(dtype, reinterpret_cast<const std::byte*>(bytes.data()), values.data(),
               static_cast<int64_t>(values.size()));
  return values;
}

// Numbers that are the same in every run and on every machine.
class TestRandom {
 public:
  explicit TestRandom(uint32_t seed) : generator_(seed) {}

  // Evenly in [-1, 1).
  float Next() { return static_cast<float>(generator_() >> 8) / 8388608.0f - 1.0f; }

  // `count` of them, each as `dtype` holds it.
  std::vector<float> Floats(DType dtype, int64_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = Next();
    return FloatsOf(dtype, BytesOf(dtype, values));
  }

  // From 0 to n - 1.
  int Below(int n) { return static_cast<int>(generator_() % static_cast<uint32_t>(n)); }

 private:
  std::mt19937 generator_;
};

struct PeftModule {
  std::string path;
  int64_t rank = 0;
  int64_t in_features = 0;
  int64_t out_features = 0;
  DType dtype = DType::kF32;
  double scale = 0;
  std::vector<float> a;  // [rank, in_features]
  std::vector<float> b;  // [out_features, rank]

  // Row `o`, column `i` of B A, by plain loops.
  double WeightDelta(int64_t o, int64_t i) const {
    double sum = 0;
    for (int64_t r = 0; r < rank; ++r) {
      sum += static_cast<double>(b[o * rank + r]) * a[r * in_features + i];
    }
    return sum;
  }
};

// A folder with adapter_config.json and adapter_model.safetensors. Elements are random, the same
// for one seed.
class PeftBuilder {
 public:
  explicit PeftBuilder(uint32_t seed = 1) : random_(seed) {}

  PeftBuilder& Add(const std::string& path, int64_t rank, int64_t in_features, int64_t out_features,
                   DType dtype = DType::kF32) {
    PeftModule module{path, rank, in_features, out_features, dtype, 0, {}, {}};
    module.scale = kAlpha / static_cast<double>(rank);
    module.a = random_.Floats(dtype, rank * in_features);
    module.b = random_.Floats(dtype, out_features * rank);
    modules_.push_back(std::move(module));
    return *this;
  }

  // Any other tensor, with random elements, which it gives.
  std::vector<float> AddTensor(const std::string& name, const Shape& shape,
                               DType dtype = DType::kF32) {
    others_.push_back({name, dtype, shape, random_.Floats(dtype, *ElementCount(shape))});
    return others_.back().values;
  }

  PeftBuilder& BaseModel(const std::string& name) {
    base_model_ = name;
    return *this;
  }

  // Adds or replaces a key of the config.
  PeftBuilder& Config(const std::string& key, nlohmann::json value) {
    more_config_[key] = std::move(value);
    return *this;
  }

  // Changes one element of the last module's B.
  PeftBuilder& Poison(float value) {
    modules_.back().b[0] = value;
    return *this;
  }

  const PeftBuilder& Write(const TempDir& dir, const std::string& folder) const {
    dir.Write(folder + "/adapter_config.json", ConfigText());
    dir.Write(folder + "/adapter_model.safetensors", WeightsFile());
    return *this;
  }

  const PeftModule& module(const std::string& path) const {
    for (const PeftModule& module : modules_) {
      if (module.path == path) return module;
    }
    throw std::out_of_range(path);
  }
  const PeftModule& module(size_t i = 0) const { return modules_.at(i); }

  static constexpr double kAlpha = 6;

 private:
  std::string ConfigText() const {
    std::set<std::string> targets;
    nlohmann::json ranks = nlohmann::json::object();
    for (const PeftModule& module : modules_) {
      targets.insert(module.path.substr(module.path.rfind('.') + 1));
      ranks[module.path] = module.rank;
    }
    nlohmann::json config = {{"peft_type", "LORA"},   {"r", 1},
                             {"lora_alpha", kAlpha},  {"target_modules", targets},
                             {"rank_pattern", ranks}, {"base_model_name_or_path", base_model_}};
    config.update(more_config_);
    return config.dump();
  }

  std::string WeightsFile() const {
    std::vector<std::string> contents;
    contents.reserve(2 * modules_.size() + others_.size());
    std::vector<SafetensorsTensor> tensors;
    const auto add = [&](const std::string& name, DType dtype, Shape shape,
                         const std::vector<float>& values) {
      contents.push_back(BytesOf(dtype, values));
      tensors.push_back(
          {name, dtype, std::move(shape), std::as_bytes(std::span<const char>(contents.back()))});
    };
    for (const PeftModule& module : modules_) {
      const std::string prefix = "base_model.model." + module.path;
      add(prefix + ".lora_A.weight", module.dtype, {module.rank, module.in_features}, module.a);
      add(prefix + ".lora_B.weight", module.dtype, {module.out_features, module.rank}, module.b);
    }
    for (const Other& other : others_) {
      add("base_model.model." + other.name, other.dtype, other.shape, other.values);
    }
    return SerializeSafetensors(std::move(tensors), {{"format", "pt"}}).value();
  }

  struct Other {
    std::string name;
    DType dtype;
    Shape shape;
    std::vector<float> values;
  };

  TestRandom random_;
  std::vector<Other> others_;
  std::vector<PeftModule> modules_;
  std::string base_model_ = "base";
  nlohmann::json more_config_ = nlohmann::json::object();
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_PEFT_BUILDER_H_
