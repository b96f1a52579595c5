#include <fmt/format.h>

#include <string>

#include "core/adapter/diffusers_keys.h"
#include "core/adapter/kohya_keys.h"
#include "tests/fuzz/property.h"
#include "tests/fuzz/target.h"

namespace adapterd::fuzz {
namespace {

constexpr std::string_view kFactor = "part of sd-scripts, joined again";
constexpr std::string_view kRefused = "part of a method that is not read";
constexpr std::string_view kPrefix = "flattened name without its component";
constexpr std::string_view kDiffusers = "factor of diffusers, joined and parsed again";
constexpr std::string_view kProcessor = "factor of an attention processor";

constexpr DeepCheck kDeepChecks[] = {
    {kFactor, ""}, {kRefused, ""}, {kPrefix, ""}, {kDiffusers, ""}, {kProcessor, ""},
};

bool IsPart(const DiffusionKey& key) {
  return key.part != DiffusionPart::kUnknown && key.part != DiffusionPart::kRefused;
}

std::string_view KohyaSuffix(DiffusionPart part) {
  switch (part) {
    case DiffusionPart::kDown:
      return ".lora_down.weight";
    case DiffusionPart::kUp:
      return ".lora_up.weight";
    case DiffusionPart::kMagnitude:
      return ".dora_scale";
    default:
      return ".alpha";
  }
}

void RequireSame(const DiffusionKey& key, const DiffusionKey& again, std::string_view property) {
  Require(again.part == key.part, property);
  Require(again.component == key.component, property);
  Require(again.module == key.module, property);
}

void RequireSound(const DiffusionKey& key) {
  Require(key.part == DiffusionPart::kUnknown || !key.module.empty(), "a part has a module");
  Require(key.part != DiffusionPart::kUnknown || key.module.empty(), "what is unknown has none");
  Require((key.part == DiffusionPart::kRefused) == !key.why.empty(), "a refusal says why");
}

void CheckKohya(std::string_view name) {
  const DiffusionKey key = ParseKohyaKey(name);
  RequireSame(key, ParseKohyaKey(name), "parsing is deterministic");
  RequireSound(key);
  Require(name.starts_with(key.module), "a module is the beginning of the name");
  Require(key.component.empty(), "the component stays in the name");
  if (key.part == DiffusionPart::kRefused) Note(KohyaKeyTarget(), kRefused);
  const std::string_view flat = WithoutComponent(key.module);
  Require(key.module.ends_with(flat), "a prefix is at the beginning");
  if (!flat.empty()) Note(KohyaKeyTarget(), kPrefix);
  const std::string flattened = FlattenedPath(name);
  Require(flattened.size() == name.size() && flattened.find('.') == std::string::npos,
          "a flattened name has no dots");
  if (!IsPart(key)) return;
  Require(name == key.module + std::string(KohyaSuffix(key.part)),
          "a name is its module and its part");
  Note(KohyaKeyTarget(), kFactor);
}

void CheckDiffusers(std::string_view name) {
  const DiffusionKey key = ParseDiffusersKey(name);
  RequireSame(key, ParseDiffusersKey(name), "parsing is deterministic");
  RequireSound(key);
  Require(key.component == ComponentOf(name), "the component is the first");
  Require(key.part != DiffusionPart::kRefused, "every method of diffusers is read");
  if (IsDiffusersName(name)) Require(IsPart(key), "what tells the format is a part of it");
  const bool is_factor = key.part == DiffusionPart::kDown || key.part == DiffusionPart::kUp;
  if (!is_factor) return;
  // The spelling that stands for all.
  const std::string joined =
      fmt::format("{}{}{}.lora.{}.weight", key.component, key.component.empty() ? "" : ".",
                  key.module, key.part == DiffusionPart::kDown ? "down" : "up");
  // Without a component the module may begin with a word that is one.
  if (!key.component.empty() || ComponentOf(joined).empty()) {
    RequireSame(key, ParseDiffusersKey(joined), "a joined key parses to itself");
  }
  Note(KohyaKeyTarget(), name.find("_lora.") == std::string_view::npos ? kDiffusers : kProcessor);
}

void Run(std::string_view input) {
  CheckKohya(input);
  CheckDiffusers(input);
}

}  // namespace

const Target& KohyaKeyTarget() {
  static constexpr Target kTarget = {"kohya_key", Run, kDeepChecks};
  return kTarget;
}

}  // namespace adapterd::fuzz
