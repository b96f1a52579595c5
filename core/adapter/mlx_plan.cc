#include "core/adapter/mlx_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/adapter/base_model_names.h"
#include "core/adapter/peft_replacements.h"
#include "core/adapter/plan_parts.h"
#include "core/base/quote.h"
#include "core/tensor/transpose.h"

namespace adapterd {
namespace {

// The tensors of one module; null: the file has none.
struct MlxModule {
  const SafetensorsEntry* a = nullptr;
  const SafetensorsEntry* b = nullptr;
  const SafetensorsEntry* m = nullptr;  // magnitude
  const SafetensorsEntry* weight = nullptr;
  const SafetensorsEntry* bias = nullptr;

  const SafetensorsEntry* Any() const { return a != nullptr ? a : b != nullptr ? b : m; }
};

ModuleTensors FoldTransposed(const ModuleInfo& /*info*/, StoredTensors stored,
                             const StoredTensors& /*shared*/) {
  for (const TensorRole role : {TensorRole::kLoraA, TensorRole::kLoraB}) {
    Tensor& factor = stored[static_cast<size_t>(role)];
    factor = TransposedMatrix(factor);
  }
  return FoldNothing(std::move(stored));
}

// What precedes the last dot, and what follows.
std::pair<std::string_view, std::string_view> SplitLeaf(std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return {"", name};
  return {name.substr(0, dot), name.substr(dot + 1)};
}

// The path within its block, after the first number; empty when it is in none.
std::string_view PathInBlock(std::string_view path) {
  for (size_t dot = path.find('.'); dot != std::string_view::npos; dot = path.find('.', dot + 1)) {
    const std::string_view before = SplitLeaf(path.substr(0, dot)).second;
    if (before.find_first_not_of("0123456789") == std::string_view::npos && !before.empty()) {
      return path.substr(dot + 1);
    }
  }
  return "";
}

class MlxPlanner {
 public:
  MlxPlanner(const MlxConfig& config, std::string_view file, ProblemList& problems)
      : config_(config), checks_(file, problems) {}

  std::optional<WeightsPlan> Plan(const SafetensorsHeader& header) {
    for (const SafetensorsEntry& tensor : header.tensors) Place(tensor);
    std::vector<PlannedPart> parts;
    for (const auto& [path, module] : modules_) {
      auto part = config_.tuning == MlxTuning::kFull ? PlanReplacement(path, module)
                                                     : PlanPair(path, module);
      if (part) parts.push_back(*std::move(part));
    }
    CheckBlocks(parts);
    if (header.tensors.empty()) checks_.Refuse({.what = "holds no tensors at all"});
    if (parts.empty()) return std::nullopt;
    WeightsPlan plan;
    plan.manifest.format = AdapterFormat::kMlx;
    plan.manifest.method = MlxTuningName(config_.tuning);
    plan.manifest.base_model = config_.base_model;
    plan.manifest.lora_dropout = config_.dropout;
    SetModules(std::move(parts), plan);
    return plan;
  }

 private:
  using Part = std::optional<PlannedPart>;

  void Place(const SafetensorsEntry& tensor) {
    if (const std::string_view fault = NameFault(tensor.name); !fault.empty()) {
      return checks_.Refuse({.tensor = &tensor, .what = std::string(fault)});
    }
    const auto [path, leaf] = SplitLeaf(tensor.name);
    if (config_.tuning == MlxTuning::kFull) return PlaceWeight(tensor, path, leaf);
    const bool has_magnitudes = config_.tuning == MlxTuning::kDora;
    if (path.empty() ||
        !(leaf == "lora_a" || leaf == "lora_b" || (leaf == "m" && has_magnitudes))) {
      return checks_.Refuse(
          {.tensor = &tensor,
           .what = fmt::format("is no factor of mlx-lm (lora_a, lora_b{}), whose config {} is",
                               has_magnitudes ? ", m" : "", config_.file)});
    }
    MlxModule& module = modules_[std::string(path)];
    (leaf == "lora_a" ? module.a : leaf == "lora_b" ? module.b : module.m) = &tensor;
  }

  // A parameter that is neither weight nor bias is a replacement under its own name.
  void PlaceWeight(const SafetensorsEntry& tensor, std::string_view path, std::string_view leaf) {
    if (path.empty() || (leaf != "weight" && leaf != "bias")) {
      modules_[tensor.name].weight = &tensor;
    } else {
      (leaf == "weight" ? modules_[std::string(path)].weight : modules_[std::string(path)].bias) =
          &tensor;
    }
  }

  Part PlanReplacement(const std::string& path, const MlxModule& module) {
    const bool is_parameter = module.weight != nullptr && module.weight->name == path;
    return PlanWholeReplacement(path, is_parameter ? SplitLeaf(path).second : "", module.weight,
                                module.bias, checks_);
  }

  Part PlanPair(const std::string& path, const MlxModule& module) {
    if (!IsComplete(path, module) || !IsTargeted(path, module)) return std::nullopt;
    const bool experts = module.b->shape.size() == 3;
    Part part = experts ? PlanExperts(path, module) : PlanMatrix(path, module);
    if (!part || !CheckRank(*part, module) || !AddMagnitude(module, *part)) return std::nullopt;
    if (!config_.rank || !config_.scale) return std::nullopt;  // refused already
    part->info.scale = *config_.scale;
    part->info.alpha = *config_.scale * static_cast<double>(part->info.rank);
    return part;
  }

  bool IsComplete(const std::string& path, const MlxModule& module) {
    bool complete = true;
    for (const auto& [tensor, name] :
         {std::pair(module.a, "lora_a"), {module.b, "lora_b"}, {module.m, "m"}}) {
      if (tensor != nullptr) continue;
      if (std::string_view(name) == "m" && config_.tuning != MlxTuning::kDora) continue;
      complete = false;
      checks_.Refuse({.tensor = module.Any(),
                      .module = path,
                      .what = fmt::format("has no {} beside it: module {} is incomplete", name,
                                          Quoted(path))});
    }
    return complete;
  }

  bool IsTargeted(const std::string& path, const MlxModule& module) {
    const std::string_view in_block = PathInBlock(path);
    for (const std::string& key : config_.keys) {
      if (path == key || in_block == key) return true;
    }
    if (config_.keys.empty()) return true;
    checks_.Refuse({.tensor = module.a,
                    .module = path,
                    .what = fmt::format("belongs to module {}, which the config does not target",
                                        Quoted(path))});
    return false;
  }

  void CheckBlocks(const std::vector<PlannedPart>& parts) {
    std::set<int32_t> blocks;
    for (const PlannedPart& part : parts) {
      if (const auto block = LayerOf(part.info.path)) blocks.insert(*block);
    }
    const auto count = static_cast<int64_t>(blocks.size());
    if (config_.num_layers == 0 || count <= config_.num_layers) return;
    if (config_.tuning == MlxTuning::kFull) return;  // the weights speak for themselves
    checks_.Refuse({.what = "has pairs in more blocks than the config says were tuned",
                    .expected = fmt::format("at most {}", config_.num_layers),
                    .actual = std::to_string(count)});
  }

  Part PlanMatrix(const std::string& path, const MlxModule& module) {
    const SafetensorsEntry& a = *module.a;
    const SafetensorsEntry& b = *module.b;
    const bool usable = checks_.Matrix(a, path, "[in, rank]");
    if (!checks_.Matrix(b, path, "[rank, out]") || !usable) return std::nullopt;
    PlannedPart part;
    ModuleInfo& info = part.info;
    info.kind = IsEmbeddingModule(path) ? ModuleKind::kEmbedding : ModuleKind::kLinear;
    info.in_features = a.shape[0];
    info.rank = a.shape[1];
    info.out_features = b.shape[1];
    AddFactors(path, module, part);
    for (PlannedTensor& tensor : part.tensors.tensors) {
      tensor.revision_role = fmt::format("{}_transposed", RoleName(tensor.role));
    }
    part.tensors.fold = FoldTransposed;
    if (b.shape[0] == info.rank) return part;
    return RefuseRanks(path, module, fmt::format("[{}, {}]", info.rank, info.out_features));
  }

  Part PlanExperts(const std::string& path, const MlxModule& module) {
    const SafetensorsEntry& a = *module.a;
    const SafetensorsEntry& b = *module.b;
    const bool usable = checks_.Values(a, path, "[experts, rank, in]");
    if (!checks_.Values(b, path, "[experts, out, rank]") || !usable) return std::nullopt;
    PlannedPart part;
    ModuleInfo& info = part.info;
    info.kind = ModuleKind::kExperts;
    info.experts = b.shape[0];
    info.out_features = b.shape[1];
    info.rank = b.shape[2];
    info.in_features = a.shape.empty() ? 0 : a.shape.back();
    AddFactors(path, module, part);
    const Shape flat = {info.experts * info.rank, info.in_features};
    if (a.shape == Shape{info.experts, info.rank, info.in_features} || a.shape == flat) return part;
    checks_.Refuse({.tensor = &a,
                    .module = path,
                    .what = "does not fit its lora_b",
                    .expected = fmt::format("[{}, {}, in]", info.experts, info.rank),
                    .actual = ShapeString(a.shape)});
    return std::nullopt;
  }

  static void AddFactors(const std::string& path, const MlxModule& module, PlannedPart& part) {
    part.info.path = path;
    part.info.lora_a_dtype = module.a->dtype;
    part.info.lora_b_dtype = module.b->dtype;
    part.info.lora_a_tensor = module.a->name;
    part.info.lora_b_tensor = module.b->name;
    part.Add(*module.a, TensorRole::kLoraA);
    part.Add(*module.b, TensorRole::kLoraB);
  }

  Part RefuseRanks(const std::string& path, const MlxModule& module, std::string expected) {
    checks_.Refuse({.tensor = module.b,
                    .module = path,
                    .what = "has another rank than its lora_a",
                    .expected = std::move(expected),
                    .actual = ShapeString(module.b->shape)});
    return std::nullopt;
  }

  bool CheckRank(const PlannedPart& part, const MlxModule& module) {
    if (!config_.rank || part.info.rank == *config_.rank) return true;
    checks_.Refuse({.tensor = module.a,
                    .module = part.info.path,
                    .what = "has another rank than the config says",
                    .expected = fmt::format("rank {}", *config_.rank),
                    .actual = fmt::format("rank {}", part.info.rank)});
    return false;
  }

  bool AddMagnitude(const MlxModule& module, PlannedPart& part) {
    if (module.m == nullptr) return true;
    ModuleInfo& info = part.info;
    if (info.kind != ModuleKind::kLinear) {
      checks_.Refuse({.reason = Reason::kUnsupportedAdapter,
                      .tensor = module.m,
                      .module = info.path,
                      .what = info.kind == ModuleKind::kEmbedding
                                  ? "scales each token of an embedding, not each of its features, "
                                    "which is not supported"
                                  : "belongs to DoRA on experts, which mlx-lm does not have"});
      return false;
    }
    if (!checks_.Vector(*module.m, info.path, info.out_features)) return false;
    info.has_magnitude = true;
    info.magnitude_dtype = module.m->dtype;
    info.magnitude_shape = module.m->shape;
    part.Add(*module.m, TensorRole::kMagnitude);
    return true;
  }

  const MlxConfig& config_;
  TensorChecks checks_;
  std::map<std::string, MlxModule> modules_;
};

}  // namespace

std::optional<WeightsPlan> BuildMlxPlan(const MlxConfig& config, const SafetensorsHeader& header,
                                        std::string_view weights_file, ProblemList& problems) {
  return MlxPlanner(config, weights_file, problems).Plan(header);
}

std::optional<WeightsPlan> PlanMlx(const SourceFiles& files, const SourceSpec& spec,
                                   ProblemList& problems) {
  if (!files.json) return std::nullopt;
  auto config = ReadMlxConfig(*files.json, Printable(files.config->name()), problems);
  if (!config) return std::nullopt;
  CheckBaseModel(spec.base_model, config->file, "model", config->base_model, problems);
  if (!files.header) return std::nullopt;
  return BuildMlxPlan(*config, *files.header, Printable(files.weights->name()), problems);
}

}  // namespace adapterd
