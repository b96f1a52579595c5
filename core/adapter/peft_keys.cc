#include "core/adapter/peft_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <span>
#include <vector>

namespace adapterd {
namespace {

using Components = std::vector<std::string_view>;

bool IsWrapper(std::string_view component) {
  return component == "_orig_mod" || component == "_fsdp_wrapped_module" ||
         component == "_checkpoint_wrapped_module";
}

Components StrippedComponents(std::string_view name) {
  Components components;
  for (size_t dot; (dot = name.find('.')) != std::string_view::npos; name.remove_prefix(dot + 1)) {
    components.push_back(name.substr(0, dot));
  }
  components.push_back(name);
  std::erase_if(components, IsWrapper);
  if (components.size() > 2 && components[0] == "base_model" && components[1] == "model") {
    components.erase(components.begin(), components.begin() + 2);
  }
  if (components.empty()) components.emplace_back();
  return components;
}

// The tail of a name: `part` [adapter name] [leaf], and the number of components before it.
struct Tail {
  std::string_view part;
  std::string_view adapter_name;
  std::string_view leaf;
  size_t module_size = 0;
};

// Splits off a tail whose part `is_part` accepts. With `with_leaf` the last component is a leaf.
template <typename IsPart>
bool SplitTail(const Components& components, bool with_leaf, IsPart is_part, Tail& tail) {
  const size_t leaf = with_leaf ? 1 : 0;
  for (const size_t name : {0, 1}) {
    if (components.size() < leaf + name + 2) return false;  // a module has at least one component
    const size_t at = components.size() - 1 - leaf - name;
    if (!is_part(components[at])) continue;
    if (name == 1 && components[at + 1].empty()) continue;  // two dots hold no name
    tail = {components[at], name == 1 ? components[at + 1] : std::string_view(),
            with_leaf ? components.back() : std::string_view(), at};
    return true;
  }
  return false;
}

bool Contains(std::span<const std::string_view> components, std::string_view wanted) {
  return std::find(components.begin(), components.end(), wanted) != components.end();
}

// A key whose module is the first `size` components, but for the wrappers at their end.
PeftKey Key(PeftTensorKind kind, const Components& components, size_t size,
            std::string_view adapter_name = {}) {
  PeftKey key;
  key.kind = kind;
  key.adapter_name = adapter_name;
  while (size > 1 && components[size - 1] == "base_layer") {
    --size;
    ++key.base_layers;
  }
  const auto end = components.begin() + static_cast<ptrdiff_t>(size);
  key.module = fmt::format("{}", fmt::join(components.begin(), end, "."));
  const std::span<const std::string_view> module(components.data(), size);
  if (Contains(module, "base_layer")) key.kind = PeftTensorKind::kAttention;
  return key;
}

struct Part {
  std::string_view name;
  PeftTensorKind kind;
};

// The part of `parts` that the name ends with, with a leaf behind it or without.
std::optional<PeftKey> MatchPart(const Components& components, std::string_view leaf,
                                 std::span<const Part> parts) {
  if (!leaf.empty() && components.back() != leaf) return std::nullopt;
  Tail tail;
  for (const Part& part : parts) {
    const auto is_part = [&part](std::string_view component) { return component == part.name; };
    if (!SplitTail(components, !leaf.empty(), is_part, tail)) continue;
    return Key(part.kind, components, tail.module_size, tail.adapter_name);
  }
  return std::nullopt;
}

constexpr Part kWeights[] = {{"lora_A", PeftTensorKind::kLoraA},
                             {"lora_B", PeftTensorKind::kLoraB},
                             {"lora_magnitude_vector", PeftTensorKind::kMagnitude}};
constexpr Part kBiases[] = {{"lora_B", PeftTensorKind::kLoraBias}};
constexpr Part kBare[] = {{"lora_embedding_A", PeftTensorKind::kEmbeddingA},
                          {"lora_embedding_B", PeftTensorKind::kEmbeddingB},
                          {"lora_magnitude_vector", PeftTensorKind::kMagnitude},
                          {"lora_A", PeftTensorKind::kBareLoraA},
                          {"lora_B", PeftTensorKind::kBareLoraB},
                          {"lora_E", PeftTensorKind::kLoraE},
                          {"vera_lambda_b", PeftTensorKind::kVeraLambdaB},
                          {"vera_lambda_d", PeftTensorKind::kVeraLambdaD}};

std::optional<PeftKey> MatchParts(const Components& components) {
  if (auto key = MatchPart(components, "weight", kWeights)) return key;
  if (auto key = MatchPart(components, "bias", kBiases)) return key;
  return MatchPart(components, "", kBare);
}

bool IsTrainingBuffer(std::string_view component) {
  return component.starts_with("lora_velora") || component.starts_with("lora_monteclora");
}

// Tensors that stand in for those of the base model, or that nothing explains.
PeftKey OtherKey(Components components) {
  const size_t size = components.size();
  if (std::any_of(components.begin(), components.end(), IsTrainingBuffer) ||
      Contains(components, "original_module")) {
    return Key(PeftTensorKind::kIgnored, components, size);
  }
  if (components.back() == "vera_A") return Key(PeftTensorKind::kVeraA, components, size);
  if (components.back() == "vera_B") return Key(PeftTensorKind::kVeraB, components, size);
  if (components.back() == "lora_diag") return Key(PeftTensorKind::kKasa, components, size);
  if (size > 2 && components[size - 2] == "token_adapter" &&
      components[size - 1] == "trainable_tokens_delta") {
    return Key(PeftTensorKind::kTokenRows, components, size - 2);
  }
  const auto copy = std::find(components.begin(), components.end(), "modules_to_save");
  const bool is_copy = copy != components.end() && components.end() - copy >= 2;
  if (is_copy) {  // <module>.modules_to_save[.<adapter name>].<parameter>
    components.erase(copy, components.end() - copy >= 3 ? copy + 2 : copy + 1);
  }
  PeftTensorKind kind = PeftTensorKind::kUnknown;
  if (components.back() == "weight") kind = PeftTensorKind::kWeight;
  if (components.back() == "bias") kind = PeftTensorKind::kBias;
  const bool has_module = components.size() > 1 && kind != PeftTensorKind::kUnknown;
  PeftKey key = Key(has_module ? kind : PeftTensorKind::kUnknown, components,
                    components.size() - (has_module ? 1 : 0));
  key.is_copy = is_copy;
  return key;
}

}  // namespace

PeftKey ParsePeftKey(std::string_view name) {
  const Components components = StrippedComponents(name);
  if (auto key = MatchParts(components)) return *std::move(key);
  return OtherKey(components);
}

}  // namespace adapterd
