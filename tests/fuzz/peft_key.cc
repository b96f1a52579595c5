#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/adapter/peft_keys.h"
#include "tests/fuzz/property.h"
#include "tests/fuzz/target.h"

namespace adapterd::fuzz {
namespace {

constexpr std::string_view kFactor = "factor, joined and parsed again";
constexpr std::string_view kAdapterName = "adapter name inside";
constexpr std::string_view kBias = "bias of a factor";
constexpr std::string_view kWrapped = "wrapper stripped";
constexpr std::string_view kOther = "tensor beside the factors";

constexpr DeepCheck kDeepChecks[] = {
    {kFactor, ""}, {kAdapterName, ""}, {kBias, ""}, {kWrapped, ""}, {kOther, ""},
};

std::vector<std::string_view> Components(std::string_view name) {
  std::vector<std::string_view> components;
  for (size_t dot; (dot = name.find('.')) != std::string_view::npos; name.remove_prefix(dot + 1)) {
    components.push_back(name.substr(0, dot));
  }
  components.push_back(name);
  return components;
}

bool IsRejoinable(PeftTensorKind kind) {
  return kind == PeftTensorKind::kLoraA || kind == PeftTensorKind::kLoraB ||
         kind == PeftTensorKind::kLoraBias;
}

// The name as PEFT would write it.
std::string Join(const PeftKey& key) {
  const bool is_bias = key.kind == PeftTensorKind::kLoraBias;
  std::string wrappers;
  for (int i = 0; i < key.base_layers; ++i) wrappers += ".base_layer";
  return fmt::format("base_model.model.{}{}.{}{}{}.{}", key.module, wrappers,
                     key.kind == PeftTensorKind::kLoraA ? "lora_A" : "lora_B",
                     key.adapter_name.empty() ? "" : ".", key.adapter_name,
                     is_bias ? "bias" : "weight");
}

void RequireSame(const PeftKey& key, const PeftKey& again, std::string_view property) {
  Require(again.kind == key.kind, property);
  Require(again.module == key.module, property);
  Require(again.adapter_name == key.adapter_name, property);
  Require(again.base_layers == key.base_layers, property);
}

void Run(std::string_view input) {
  const PeftKey key = ParsePeftKey(input);
  RequireSame(key, ParsePeftKey(input), "parsing is deterministic");
  Require(key.module.size() + key.adapter_name.size() <= input.size(), "nothing is made up");

  const std::vector<std::string_view> given = Components(input);
  const std::vector<std::string_view> module = Components(key.module);
  size_t kept = 0;
  for (const std::string_view component : given) {
    if (kept < module.size() && module[kept] == component) ++kept;
  }
  Require(kept == module.size() || key.module.empty(),
          "a module's components are the name's, in order");
  const auto wrapper = std::find(given.begin(), given.end(), "_orig_mod");
  if (wrapper != given.end()) {
    Require(std::find(module.begin(), module.end(), "_orig_mod") == module.end(),
            "no wrapper is left in a module's path");
    Note(PeftKeyTarget(), kWrapped);
  }
  if (!IsRejoinable(key.kind)) {
    if (key.kind != PeftTensorKind::kUnknown) Note(PeftKeyTarget(), kOther);
    return;
  }
  RequireSame(key, ParsePeftKey(Join(key)), "a joined key parses to itself");
  Note(PeftKeyTarget(), key.kind == PeftTensorKind::kLoraBias ? kBias : kFactor);
  if (!key.adapter_name.empty()) Note(PeftKeyTarget(), kAdapterName);
}

}  // namespace

const Target& PeftKeyTarget() {
  static constexpr Target kTarget = {"peft_key", Run, kDeepChecks};
  return kTarget;
}

}  // namespace adapterd::fuzz
