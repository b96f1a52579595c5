#include "core/adapter/kohya_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "core/adapter/diffusion_pairs.h"
#include "core/adapter/kohya_keys.h"
#include "core/adapter/plan_parts.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

constexpr std::string_view kWeight = ".weight";
// An error names no more than this.
constexpr size_t kMaxCandidates = 8;
// Whole checkpoints put "model.diffusion_model." and the like before a component's own paths.
constexpr int kMaxPrefixComponents = 2;

Problem Warning(std::string_view file, std::string message) {
  Problem problem;
  problem.severity = Severity::kWarning;
  problem.reason = Reason::kInvalidAdapter;
  problem.file = file;
  problem.message = fmt::format("{}: {}", file, message);
  return problem;
}

std::string PathOf(const CheckpointTensor& tensor) {
  return tensor.name.substr(0, tensor.name.size() - kWeight.size());
}

class KohyaPlanner {
 public:
  // `names` may be null.
  KohyaPlanner(const DiffusionModules& modules, const AlphaValues& alphas, const FlatNames* names,
               TensorChecks& checks, ProblemList& problems)
      : modules_(modules), alphas_(alphas), names_(names), checks_(checks), problems_(problems) {}

  std::vector<PlannedPart> Plan() {
    std::vector<PlannedPart> parts;
    for (const auto& [key, tensors] : modules_) {
      auto part = PlanModule(key.second, tensors);
      if (part) parts.push_back(*std::move(part));
    }
    WarnOfAlphas();
    if (names_ == nullptr && has_flat_names_) {
      problems_.Add(Warning(checks_.file(),
                            "its names have underscores for dots and are kept as they are: "
                            "base_checkpoint would tell the modules' paths"));
    }
    return parts;
  }

 private:
  std::optional<PlannedPart> PlanModule(const std::string& name, const DiffusionTensors& tensors) {
    const std::string_view flat = WithoutComponent(name);
    has_flat_names_ |= !flat.empty();
    const CheckpointTensor* weight = nullptr;
    if (names_ != nullptr && !flat.empty() && !Resolve(name, flat, tensors, weight)) {
      return std::nullopt;
    }
    const std::string path = weight == nullptr ? name : PathOf(*weight);
    auto part = PlanDiffusionPair(path, tensors, alphas_, ZeroAlpha::kIsRank, checks_);
    if (!part) return std::nullopt;
    part->tensors.revision_path = name;
    CountAlpha(tensors);
    ModuleInfo& info = part->info;
    const bool is_point = info.kind == ModuleKind::kConv && info.kernel_elements == 1;
    // The kernel of a linear layer's pair is one element: the same product.
    if (is_point && weight != nullptr && weight->shape.size() == 2) {
      info.kind = ModuleKind::kLinear;
      info.kernel.clear();
      if (info.has_magnitude) info.magnitude_shape = {info.out_features};
    }
    return part;
  }

  // False: refused. `weight` stays null when the base has no such module.
  bool Resolve(const std::string& name, std::string_view flat, const DiffusionTensors& tensors,
               const CheckpointTensor*& weight) {
    const auto found = names_->Find(flat);
    if (found.empty()) return true;
    if (found.size() > 1) {
      RefuseAmbiguous(name, found, tensors);
      return false;
    }
    weight = found[0];
    const auto [first, is_new] = resolved_.emplace(weight->name, &tensors.Any());
    if (is_new) return true;
    checks_.Refuse({.tensor = &tensors.Any(),
                    .module = name,
                    .what = fmt::format("means module {} of the base model, as {} does",
                                        Quoted(PathOf(*weight)), Quoted(first->second->name))});
    return false;
  }

  void RefuseAmbiguous(const std::string& name, const std::vector<const CheckpointTensor*>& found,
                       const DiffusionTensors& tensors) {
    std::string candidates;
    for (size_t i = 0; i < std::min(found.size(), kMaxCandidates); ++i) {
      candidates += (i == 0 ? "" : ", ") + Quoted(PathOf(*found[i]));
    }
    checks_.Refuse({.reason = Reason::kBaseModelMismatch,
                    .tensor = &tensors.Any(),
                    .module = name,
                    .what = fmt::format("may mean {} modules of the base model: {}", found.size(),
                                        candidates)});
  }

  void CountAlpha(const DiffusionTensors& tensors) {
    ++pairs_;
    if (tensors.alpha == nullptr) return ++without_alpha_, void();
    if (alphas_.find(tensors.alpha->name)->second == 0) ++zero_alphas_;
  }

  void WarnOfAlphas() {
    if (without_alpha_ > 0) {
      problems_.Add(Warning(checks_.file(),
                            fmt::format("{} of {} modules have no alpha: it is taken for the rank, "
                                        "so that their scale is 1",
                                        without_alpha_, pairs_)));
    }
    if (zero_alphas_ > 0) {
      problems_.Add(Warning(checks_.file(),
                            fmt::format("{} of {} modules have an alpha of 0, which sd-scripts "
                                        "takes for the rank (scale 1) when it applies an adapter, "
                                        "and for 0 when it merges one: the scale used is 1",
                                        zero_alphas_, pairs_)));
    }
  }

  const DiffusionModules& modules_;
  const AlphaValues& alphas_;
  const FlatNames* names_;
  TensorChecks& checks_;
  ProblemList& problems_;
  std::map<std::string_view, const SafetensorsEntry*> resolved_;  // by the base's tensor
  bool has_flat_names_ = false;
  size_t pairs_ = 0;
  size_t without_alpha_ = 0;
  size_t zero_alphas_ = 0;
};

}  // namespace

FlatNames::FlatNames(const std::vector<CheckpointTensor>& tensors) {
  for (const CheckpointTensor& tensor : tensors) {
    if (!tensor.name.ends_with(kWeight)) continue;
    const std::string path = PathOf(tensor);
    whole_[FlattenedPath(path)].push_back(&tensor);
    std::string_view tail = path;
    for (int i = 0; i < kMaxPrefixComponents; ++i) {
      const size_t dot = tail.find('.');
      if (dot == std::string_view::npos) break;
      tail.remove_prefix(dot + 1);
      tails_[FlattenedPath(tail)].push_back(&tensor);
    }
  }
}

std::vector<const CheckpointTensor*> FlatNames::Find(std::string_view flat) const {
  for (const Index* index : {&whole_, &tails_}) {
    if (const auto found = index->find(std::string(flat)); found != index->end())
      return found->second;
  }
  return {};
}

std::optional<WeightsPlan> PlanKohya(const SourceFiles& files, const SourceSpec& spec,
                                     const BaseTensors* base, ProblemList& problems) {
  if (!files.header) return std::nullopt;
  TensorChecks checks(Printable(files.weights->name()), problems);
  const DiffusionModules modules = SortDiffusionTensors(*files.header, ParseKohyaKey, checks);
  const AlphaValues alphas = ReadAlphas(*files.weights, modules, checks);
  std::optional<FlatNames> names;
  if (base != nullptr) names.emplace(base->tensors());
  auto parts = KohyaPlanner(modules, alphas, names ? &*names : nullptr, checks, problems).Plan();
  if (parts.empty()) return std::nullopt;
  WeightsPlan plan;
  plan.manifest.format = AdapterFormat::kKohya;
  plan.manifest.method = MethodOf(parts);
  plan.manifest.base_model = spec.base_model;
  SetModules(std::move(parts), plan);
  return plan;
}

}  // namespace adapterd
