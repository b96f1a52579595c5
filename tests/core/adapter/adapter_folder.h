// A PEFT adapter made for one test.
#ifndef ADAPTERD_TESTS_CORE_ADAPTER_ADAPTER_FOLDER_H_
#define ADAPTERD_TESTS_CORE_ADAPTER_ADAPTER_FOLDER_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/adapter/adapter_reader.h"
#include "core/formats/safetensors.h"
#include "core/tensor/convert.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {

// The opener over everything below `root`, adapters and base models alike.
inline AdapterOpener OpenerAt(const std::filesystem::path& root) {
  auto roots = SourceRoots::Open({{"", root.string()}});
  if (!roots.ok()) throw std::runtime_error(std::string(roots.status().message()));
  auto shared = std::make_shared<const SourceRoots>(*std::move(roots));
  return OpenFromRoots(shared, shared);
}

// Matches a Problem that is a warning with this in its message.
MATCHER_P(IsWarning, text, "") {
  *result_listener << "\"" << arg.message << "\"";
  return arg.severity == Severity::kWarning && arg.message.find(text) != std::string::npos;
}

// GoogleTest finds this to print one.
inline void PrintTo(const Problem& problem, std::ostream* os) {
  *os << ReasonName(problem.reason) << " \"" << problem.message << "\"";
}

// Matches a Problem.
MATCHER_P2(IsError, reason, field_or_tensor, "") {
  *result_listener << ReasonName(arg.reason) << " \"" << arg.message << "\" field \"" << arg.field
                   << "\" tensor \"" << arg.tensor << "\"";
  const bool about = std::string_view(field_or_tensor).empty() || arg.field == field_or_tensor ||
                     arg.tensor == field_or_tensor;
  return arg.severity == Severity::kError && arg.reason == reason && about;
}

// One number as a file holds it.
template <typename Number>
std::string NumberBytes(Number number) {
  std::string bytes(sizeof(number), '\0');
  std::memcpy(bytes.data(), &number, sizeof(number));
  return bytes;
}

// A temporary folder "a" with adapter_config.json (PEFT's, unless said otherwise) and
// adapter_model.safetensors.
class AdapterFolder {
 public:
  static constexpr char kConfig[] = "a/adapter_config.json";
  static constexpr char kWeights[] = "a/adapter_model.safetensors";

  AdapterFolder& Without(const std::string& key) {
    std::erase_if(keys_, [&](const auto& present) { return present.first == key; });
    return *this;
  }

  // Keys and values as JSON text, e.g. {"r", "8"}; later ones replace earlier ones of that name.
  using Keys = std::vector<std::pair<std::string, std::string>>;

  AdapterFolder& Config(const Keys& keys) {
    for (const auto& [key, value] : keys) {
      bool replaced = false;
      for (auto& [present, old] : keys_) {
        if (present != key) continue;
        old = value;
        replaced = true;
      }
      if (!replaced) keys_.emplace_back(key, value);
    }
    return *this;
  }

  // In place of PEFT's; empty: no config at all.
  AdapterFolder& ConfigText(std::string text) {
    config_text_ = std::move(text);
    return *this;
  }

  AdapterFolder& Metadata(const std::string& key, std::string value) {
    metadata_[key] = std::move(value);
    return *this;
  }

  // Elements 1, 2, 3, ... divided by 64: exact in every dtype up to 256 of them.
  AdapterFolder& Add(std::string name, Shape shape, DType dtype = DType::kF32) {
    int64_t count = 1;
    for (const int64_t dim : shape) count *= dim;
    std::string bytes(count * BitsOf(dtype) / 8, '\0');
    if (IsComputeFloat(dtype)) {
      std::vector<float> values(count);
      for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(i % 256 + 1) / 64;
      ConvertFromF32(values.data(), dtype, reinterpret_cast<std::byte*>(bytes.data()), count);
    }
    return AddBytes(std::move(name), std::move(shape), dtype, std::move(bytes));
  }

  AdapterFolder& AddBytes(std::string name, Shape shape, DType dtype, std::string bytes) {
    tensors_.push_back({std::move(name), std::move(shape), dtype, std::move(bytes)});
    return *this;
  }

  AdapterFolder& AddPair(const std::string& module, int64_t rank = 2, int64_t in = 4,
                         int64_t out = 3, DType dtype = DType::kF32) {
    Add("base_model.model." + module + ".lora_A.weight", {rank, in}, dtype);
    return Add("base_model.model." + module + ".lora_B.weight", {out, rank}, dtype);
  }

  AdapterFolder& Write() {
    std::string json = "{";
    for (const auto& [key, value] : keys_) {
      json += (json.size() == 1 ? "\"" : ", \"") + key + "\": " + value;
    }
    json = config_text_.value_or(json + "}");
    if (!json.empty()) dir_.Write(kConfig, json);
    std::vector<SafetensorsTensor> tensors;
    for (const auto& tensor : tensors_) {
      tensors.push_back({tensor.name, tensor.dtype, tensor.shape,
                         std::as_bytes(std::span<const char>(tensor.bytes))});
    }
    dir_.Write(kWeights, SerializeSafetensors(std::move(tensors), metadata_).value());
    return *this;
  }

  // Null when anything is wrong; what Open found is in problems().
  std::unique_ptr<AdapterReader> Open(const std::string& base_model = "",
                                      const std::string& base_checkpoint = "") {
    problems_ = ProblemList();
    auto reader = OpenerAt(dir_.path())({"a", base_model, base_checkpoint}, problems_);
    return problems_.has_errors() ? nullptr : std::move(reader);
  }

  std::unique_ptr<AdapterReader> WriteAndOpen() { return Write().Open(); }

  // The revision; the modules go to `sink`. What it found is in problems(), too.
  absl::StatusOr<std::string> Read(AdapterReader& reader, ModuleSink* sink = nullptr,
                                   const Cancellation& cancellation = {}) {
    ThreadPool pool("io", 2);
    return reader.Read(pool, cancellation, sink, problems_);
  }

  const TempDir& dir() const { return dir_; }
  ProblemList& problems() { return problems_; }

 private:
  struct OwnedTensor {
    std::string name;
    Shape shape;
    DType dtype;
    std::string bytes;
  };

  TempDir dir_;
  Keys keys_ = {{"peft_type", "\"LORA\""},
                {"target_modules", "[\"q_proj\", \"v_proj\"]"},
                {"r", "2"},
                {"lora_alpha", "4"},
                {"base_model_name_or_path", "\"base\""}};
  std::optional<std::string> config_text_;
  std::map<std::string, std::string> metadata_;
  std::vector<OwnedTensor> tensors_;
  ProblemList problems_;
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_ADAPTER_ADAPTER_FOLDER_H_
