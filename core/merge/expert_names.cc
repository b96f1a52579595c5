#include "core/merge/expert_names.h"

#include <fmt/format.h>

#include <string_view>

namespace adapterd {
namespace {

// How one family of models calls a layer's experts when they are apart.
struct Family {
  std::string_view fused_owner;  // component before "experts" in the fused path
  std::string_view owner;        // the same in the checkpoint
  std::string_view gate, up, down;
};

constexpr Family kFamilies[] = {
    {"mlp", "block_sparse_moe", "w1", "w3", "w2"},
    {"block_sparse_moe", "block_sparse_moe", "w1", "w3", "w2"},
    {"mlp", "mlp", "gate_proj", "up_proj", "down_proj"},
    {"block_sparse_moe", "block_sparse_moe", "gate_proj", "up_proj", "down_proj"},
};

constexpr std::string_view kGateUp = ".experts.gate_up_proj";
constexpr std::string_view kDown = ".experts.down_proj";

const CheckpointTensor* FindOne(const BaseNames& names, const std::string& path) {
  const auto found = names.Find(path, ".weight");
  return found.size() == 1 ? found[0] : nullptr;
}

// `stem` ends before the owner's name.
std::vector<ExpertTensor> FindFamily(const ModuleInfo& module, const BaseNames& names,
                                     std::string_view stem, const Family& family, bool gate_up) {
  const std::vector<std::string_view> parts =
      gate_up ? std::vector{family.gate, family.up} : std::vector{family.down};
  const auto count = static_cast<int64_t>(parts.size());
  if (module.out_features % count != 0) return {};
  const int64_t outputs = module.out_features / count;
  const auto path = [&](int64_t expert, std::string_view part) {
    return fmt::format("{}{}.experts.{}.{}", stem, family.owner, expert, part);
  };
  std::vector<ExpertTensor> tensors;
  for (int64_t expert = 0; expert < module.experts; ++expert) {
    for (int64_t part = 0; part < count; ++part) {
      const CheckpointTensor* tensor = FindOne(names, path(expert, parts[part]));
      if (tensor == nullptr || tensor->shape != Shape{outputs, module.in_features}) return {};
      tensors.push_back({tensor, expert, part * outputs, outputs});
    }
  }
  // An adapter of fewer experts than the model has is another model's.
  if (FindOne(names, path(module.experts, parts[0])) != nullptr) return {};
  return tensors;
}

}  // namespace

std::vector<ExpertTensor> FindExpertTensors(const ModuleInfo& module, const BaseNames& names) {
  if (module.kind != ModuleKind::kExperts) return {};
  const std::string_view path = module.path;
  const bool gate_up = path.ends_with(kGateUp);
  if (!gate_up && !path.ends_with(kDown)) return {};
  const std::string_view owner_path =
      path.substr(0, path.size() - (gate_up ? kGateUp : kDown).size());
  for (const Family& family : kFamilies) {
    if (!owner_path.ends_with(family.fused_owner)) continue;
    const std::string_view stem =
        owner_path.substr(0, owner_path.size() - family.fused_owner.size());
    std::vector<ExpertTensor> found = FindFamily(module, names, stem, family, gate_up);
    if (!found.empty()) return found;
  }
  return {};
}

}  // namespace adapterd
