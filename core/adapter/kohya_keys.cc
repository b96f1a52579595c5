#include "core/adapter/kohya_keys.h"

#include <algorithm>
#include <string>

namespace adapterd {
namespace {

struct Suffix {
  std::string_view end;  // of the name, from the dot behind the module on
  DiffusionPart part;
};

constexpr Suffix kSuffixes[] = {
    {".lora_down.weight", DiffusionPart::kDown},
    {".lora_up.weight", DiffusionPart::kUp},
    {".dora_scale", DiffusionPart::kMagnitude},
    {".alpha", DiffusionPart::kAlpha},
};

// A part that begins like this, behind the module, belongs to a method that is not read.
struct Method {
  std::string_view begin;
  std::string_view why;
};

constexpr Method kMethods[] = {
    {".lora_mid.", "a convolution in Tucker's form (lora_mid), which is not supported"},
    {".hada_", "LoHa, a product of two pairs element by element, which is not supported"},
    {".lokr_", "LoKr, a Kronecker product, which is not supported"},
    {".oft_", "OFT, which rotates weights instead of adding to them"},
    {".diff_b", "a difference of whole biases, which has no factors"},
    {".diff", "a difference of whole weights, which has no factors"},
    {".w_norm", "a difference of a norm's weights, which has no factors"},
    {".b_norm", "a difference of a norm's biases, which has no factors"},
    {".on_input", "IA3, which scales activations instead of adding to weights"},
    {".bias_", "a sparse difference of biases, which is not supported"},
};

}  // namespace

DiffusionKey ParseKohyaKey(std::string_view name) {
  DiffusionKey key;
  for (const auto& [end, part] : kSuffixes) {
    if (name.size() <= end.size() || !name.ends_with(end)) continue;
    key.part = part;
    key.module = name.substr(0, name.size() - end.size());
    return key;
  }
  for (const auto& [begin, why] : kMethods) {
    const size_t at = name.rfind(begin);
    if (at == 0 || at == std::string_view::npos) continue;
    key.part = DiffusionPart::kRefused;
    key.module = name.substr(0, at);
    key.why = why;
    return key;
  }
  return key;
}

bool IsKohyaName(std::string_view name) {
  for (const std::string_view part :
       {".lora_down.", ".lora_up.", ".lora_mid.", ".hada_", ".lokr_"}) {
    if (name.find(part) != std::string_view::npos) return true;
  }
  return false;
}

std::string FlattenedPath(std::string_view path) {
  std::string flat(path);
  std::replace(flat.begin(), flat.end(), '.', '_');
  return flat;
}

std::string_view WithoutComponent(std::string_view module) {
  for (const std::string_view tool : {"lora_", "lycoris_"}) {
    if (!module.starts_with(tool)) continue;
    const std::string_view rest = module.substr(tool.size());
    const size_t end = rest.find('_');
    return end == std::string_view::npos ? "" : rest.substr(end + 1);
  }
  return "";
}

}  // namespace adapterd
