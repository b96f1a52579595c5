// Writes GGUF files, sound and broken ones, without the code under test.
#ifndef ADAPTERD_TESTS_TESTING_GGUF_BUILDER_H_
#define ADAPTERD_TESTS_TESTING_GGUF_BUILDER_H_

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace adapterd {

// Numbers of enum gguf_type and enum ggml_type, by ggml/include/gguf.h and ggml.h.
inline constexpr uint32_t kGgufUint32 = 4;
inline constexpr uint32_t kGgufFloat32 = 6;
inline constexpr uint32_t kGgufString = 8;
inline constexpr uint32_t kGgufArrayType = 9;
inline constexpr uint32_t kGgmlF32 = 0;
inline constexpr uint32_t kGgmlF16 = 1;
inline constexpr uint32_t kGgmlQ8 = 8;
inline constexpr uint32_t kGgmlBF16 = 30;

template <typename T>
std::string RawBytes(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}

inline std::string GgufText(std::string_view text) {
  return RawBytes<uint64_t>(text.size()) + std::string(text);
}

// Public fields are what tests spoil.
class GgufBuilder {
 public:
  struct Info {
    std::string name;
    std::vector<uint64_t> dims;  // fastest first, as in the file
    uint32_t type = kGgmlF32;
    std::string data;
    std::optional<uint64_t> offset = std::nullopt;  // instead of the right one
  };

  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<uint64_t> tensor_count;  // instead of the right one
  std::optional<uint64_t> key_count;
  uint64_t alignment = 32;
  std::string trailing;
  std::vector<Info> tensors;

  GgufBuilder& Raw(std::string_view key, uint32_t type, std::string_view value) {
    std::erase_if(keys_, [&](const auto& present) { return present.first == key; });
    return RawTwice(key, type, value);
  }
  // Beside a key of that name.
  GgufBuilder& RawTwice(std::string_view key, uint32_t type, std::string_view value) {
    keys_.emplace_back(key, RawBytes(type) + std::string(value));
    return *this;
  }
  GgufBuilder& Text(std::string_view key, std::string_view value) {
    return Raw(key, kGgufString, GgufText(value));
  }
  GgufBuilder& Float(std::string_view key, float value) {
    return Raw(key, kGgufFloat32, RawBytes(value));
  }
  GgufBuilder& Without(std::string_view key) {
    std::erase_if(keys_, [&](const auto& present) { return present.first == key; });
    return *this;
  }
  GgufBuilder& Tensor(std::string name, std::vector<uint64_t> dims,
                      const std::vector<float>& data) {
    std::string bytes(data.size() * sizeof(float), '\0');
    std::memcpy(bytes.data(), data.data(), bytes.size());
    tensors.push_back({std::move(name), std::move(dims), kGgmlF32, std::move(bytes)});
    return *this;
  }
  // F32 factors of `base`, elements 1, 2, 3, ... / 64 each.
  GgufBuilder& Pair(const std::string& base, uint64_t rank, uint64_t in, uint64_t out) {
    return Tensor(base + ".lora_a", {in, rank}, Counted(in * rank))
        .Tensor(base + ".lora_b", {rank, out}, Counted(rank * out));
  }

  static std::vector<float> Counted(uint64_t count) {
    std::vector<float> values(count);
    for (uint64_t i = 0; i < count; ++i) values[i] = static_cast<float>(i % 256 + 1) / 64;
    return values;
  }

  std::string Build() const {
    std::string file = magic + RawBytes(version);
    file += RawBytes<uint64_t>(tensor_count.value_or(tensors.size()));
    file += RawBytes<uint64_t>(key_count.value_or(keys_.size()));
    for (const auto& [key, value] : keys_) file += GgufText(key) + value;
    std::string data;
    for (const Info& tensor : tensors) {
      file += GgufText(tensor.name) + RawBytes(static_cast<uint32_t>(tensor.dims.size()));
      for (const uint64_t dim : tensor.dims) file += RawBytes(dim);
      file += RawBytes(tensor.type) + RawBytes<uint64_t>(tensor.offset.value_or(data.size()));
      data += tensor.data;
      Pad(data);
    }
    Pad(file);
    return file + data + trailing;
  }

 private:
  void Pad(std::string& bytes) const {
    if (alignment > 0) bytes.resize((bytes.size() + alignment - 1) / alignment * alignment, '\0');
  }

  std::vector<std::pair<std::string, std::string>> keys_;
};

// An adapter of the Qwen2 family, whose rows keep their order: one pair, scale 16 / 4.
inline GgufBuilder SmallGguf() {
  GgufBuilder builder;
  builder.Text("general.architecture", "qwen2")
      .Text("general.type", "adapter")
      .Text("adapter.type", "lora")
      .Float("adapter.lora.alpha", 16);
  builder.Pair("blk.0.attn_q.weight", 4, 8, 6);
  return builder;
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_GGUF_BUILDER_H_
