#include "core/adapter/peft_keys.h"

#include <fmt/format.h>

#include <algorithm>
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
    tail = {components[at], name == 1 ? components[at + 1] : std::string_view(),
            with_leaf ? components.back() : std::string_view(), at};
    return true;
  }
  return false;
}

bool Contains(std::span<const std::string_view> components, std::string_view wanted) {
  return std::find(components.begin(), components.end(), wanted) != components.end();
}

PeftKey Key(PeftTensorKind kind, const Components& components, const Tail& tail) {
  const auto end = components.begin() + static_cast<ptrdiff_t>(tail.module_size);
  return {kind, fmt::format("{}", fmt::join(components.begin(), end, ".")),
          std::string(tail.adapter_name)};
}

PeftTensorKind OtherKind(const Components& components) {
  if (Contains(components, "token_adapter")) return PeftTensorKind::kTokenRows;
  for (const std::string_view component : components) {
    if (component == "lora_diag" || component.starts_with("lora_velora") ||
        component.starts_with("lora_monteclora")) {
      return PeftTensorKind::kVariant;
    }
  }
  if (components.back() == "bias") return PeftTensorKind::kBias;
  if (Contains(components, "base_layer") || Contains(components, "original_module") ||
      Contains(components, "modules_to_save")) {
    return PeftTensorKind::kSavedWeight;
  }
  if (components.size() >= 2 && components.back() == "weight") {
    const std::string_view owner = components[components.size() - 2];
    if (owner == "embed_tokens" || owner == "lm_head") return PeftTensorKind::kSavedWeight;
  }
  return PeftTensorKind::kUnknown;
}

}  // namespace

PeftKey ParsePeftKey(std::string_view name) {
  const Components components = StrippedComponents(name);
  const std::string_view leaf = components.back();
  Tail tail;
  const auto is_pair = [](std::string_view c) { return c == "lora_A" || c == "lora_B"; };
  if ((leaf == "weight" || leaf == "bias") && SplitTail(components, true, is_pair, tail)) {
    PeftTensorKind kind = tail.part == "lora_A" ? PeftTensorKind::kLoraA : PeftTensorKind::kLoraB;
    const std::span<const std::string_view> module(components.data(), tail.module_size);
    if (leaf == "bias") {
      kind = PeftTensorKind::kLoraBias;
    } else if (Contains(module, "base_layer")) {
      kind = PeftTensorKind::kNested;
    }
    return Key(kind, components, tail);
  }
  const auto is_embedding = [](std::string_view c) {
    return c == "lora_embedding_A" || c == "lora_embedding_B";
  };
  if (SplitTail(components, false, is_embedding, tail)) {
    return Key(PeftTensorKind::kEmbedding, components, tail);
  }
  const auto is_magnitude = [](std::string_view c) { return c == "lora_magnitude_vector"; };
  if (SplitTail(components, false, is_magnitude, tail) ||
      SplitTail(components, true, is_magnitude, tail)) {
    return Key(PeftTensorKind::kMagnitude, components, tail);
  }
  return {OtherKind(components), fmt::format("{}", fmt::join(components, ".")), ""};
}

}  // namespace adapterd
