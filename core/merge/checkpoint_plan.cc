#include "core/merge/checkpoint_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "core/adapter/base_model_binding.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/merge/expert_names.h"

namespace adapterd {
namespace {

constexpr std::string_view kWeight = ".weight";
// A message names no more than this.
constexpr size_t kMaxNamed = 5;

bool IsFloat(DType dtype) {
  return DTypeName(dtype).front() == 'F' || DTypeName(dtype).front() == 'B' ? dtype != DType::kBool
                                                                            : false;
}

// A module of an adapter that stands for itself, and what it is bound by.
struct Target {
  size_t module = 0;
  size_t bound = 0;  // of a pair that is added to a whole replacement: the replacement
};

std::vector<Target> TargetsOf(const std::vector<ModuleInfo>& modules) {
  std::vector<Target> targets;
  for (size_t i = 0; i < modules.size(); ++i) {
    const bool has_twin = i + 1 < modules.size() && modules[i + 1].path == modules[i].path;
    const bool replaces_all =
        has_twin && !modules[i + 1].weight_shape.empty() && modules[i + 1].token_ids.empty();
    targets.push_back({i, replaces_all ? i + 1 : i});
    if (has_twin) ++i;
  }
  return targets;
}

class Planner {
 public:
  Planner(const BaseModel& base, const CheckpointMergeRequest& request)
      : base_(base), request_(request), names_(base.checkpoint()) {}

  absl::Status AddAdapter(const CheckpointAdapter& adapter);
  absl::StatusOr<CheckpointPlan> Finish();

 private:
  absl::Status AddModule(const MergePart& part, const ModuleInfo& bound,
                         const BaseBinding& binding);
  absl::Status AddWeight(const MergePart& part, const ModuleInfo& bound, const BaseWeight& weight);
  absl::Status AddBias(const MergePart& part, const BaseBinding& binding);
  absl::Status AddExperts(const MergePart& part, OutputTensor& planned, WeightLayout layout);
  absl::Status AddSlice(OutputTensor& planned, const MergePart& part, int64_t first_row,
                        Shape shape, WeightLayout layout);
  absl::Status AddResized(OutputTensor& planned, const MergePart& part);
  absl::Status MissModule(const CheckpointAdapter& adapter, const ModuleInfo& module);
  OutputTensor& Planned(const std::string& name, const CheckpointTensor& source);
  // Its name in the output: that of the tensor, unless the module is a head that shares another's.
  std::string NameOf(const ModuleInfo& module, const CheckpointTensor& tensor);
  absl::Status CheckMatched() const;
  absl::Status CheckVocabulary(CheckpointPlan& plan) const;
  absl::Status SetTypes();

  const BaseModel& base_;
  const CheckpointMergeRequest& request_;
  const BaseNames names_;
  std::map<std::string, OutputTensor> tensors_;  // that an adapter changes
  std::set<std::string> unmatched_;
  std::string unmatched_adapter_;  // the first one
  bool untied_ = false;
};

absl::Status TensorError(Reason reason, const OutputTensor& tensor, const std::string& what) {
  return Error(reason, fmt::format("tensor {} {}", Quoted(tensor.name), what))
      .With("tensor", Printable(tensor.name));
}

absl::Status Planner::MissModule(const CheckpointAdapter& adapter, const ModuleInfo& module) {
  const std::string_view suffix = module.kind == ModuleKind::kExperts ? "" : kWeight;
  if (names_.Find(module.path, suffix).size() > 1) {
    return Error(Reason::kModuleNotTargeted,
                 fmt::format("module {} may be more than one tensor of the checkpoint",
                             Quoted(module.path)))
        .With("adapter", adapter.name)
        .With("module", Printable(module.path));
  }
  if (unmatched_.empty()) unmatched_adapter_ = adapter.name;
  unmatched_.insert(module.path);
  return absl::OkStatus();
}

absl::Status Planner::AddAdapter(const CheckpointAdapter& adapter) {
  const AdapterManifest& manifest = adapter.handle->manifest();
  if (!manifest.peft.layer_replication.empty()) {
    return Error(Reason::kUnsupportedAdapter,
                 fmt::format("adapter \"{}\" is for a model with replicated layers "
                             "(layer_replication), which a checkpoint of its base does not have",
                             adapter.name))
        .With("adapter", adapter.name);
  }
  std::vector<Target> targets;
  std::vector<ModuleInfo> bound;
  for (const Target& target : TargetsOf(manifest.modules)) {
    const ModuleInfo& module = manifest.modules[target.module];
    MergePart part{adapter.name, adapter.handle, target.module, 0, adapter.weight};
    const std::vector<ExpertTensor> experts = FindExpertTensors(module, names_);
    for (const ExpertTensor& expert : experts) {
      part.pair = expert.expert;
      part.first_output = expert.first_output;
      part.outputs = expert.outputs;
      RETURN_IF_ERROR(AddSlice(Planned(expert.tensor->name, *expert.tensor), part, 0,
                               expert.tensor->shape, WeightLayout::kOutIn));
    }
    if (!experts.empty()) continue;
    targets.push_back(target);
    bound.push_back(manifest.modules[target.bound]);
  }
  ProblemList problems;
  const BindOptions options{.fan_in_fan_out = manifest.peft.fan_in_fan_out,
                            .layer_replication = {}};
  const std::vector<BaseBinding> bindings = BindToBase(bound, base_, options, problems);
  if (problems.has_errors()) return Annotate(problems.ToStatus(), "adapter", adapter.name);
  for (size_t i = 0; i < targets.size(); ++i) {
    const MergePart part{adapter.name, adapter.handle, targets[i].module, 0, adapter.weight};
    if (!bindings[i].weight && !bindings[i].bias) {
      RETURN_IF_ERROR(MissModule(adapter, part.info()));
      continue;
    }
    const absl::Status added = AddModule(part, bound[i], bindings[i]);
    if (!added.ok()) return About(added, part);
  }
  return absl::OkStatus();
}

absl::Status Planner::AddModule(const MergePart& part, const ModuleInfo& bound,
                                const BaseBinding& binding) {
  if (binding.weight) RETURN_IF_ERROR(AddWeight(part, bound, *binding.weight));
  return part.ChangesBias() ? AddBias(part, binding) : absl::OkStatus();
}

OutputTensor& Planner::Planned(const std::string& name, const CheckpointTensor& source) {
  OutputTensor& planned = tensors_[name];
  if (planned.source == nullptr) {
    planned = {.name = name,
               .source = &source,
               .dtype = source.dtype,
               .shape = source.shape,
               .slices = {},
               .bias = {}};
  }
  return planned;
}

std::string Planner::NameOf(const ModuleInfo& module, const CheckpointTensor& tensor) {
  const bool is_head = !names_.FindTied(module.path).empty();
  // A head of its own in the file is not read by models that tie theirs.
  if (is_head && base_.geometry().tie_word_embeddings.value_or(true)) untied_ = true;
  const bool shares = is_head && names_.Find(module.path, kWeight).empty();
  return shares ? fmt::format("{}{}", module.path, kWeight) : tensor.name;
}

absl::Status Planner::AddWeight(const MergePart& part, const ModuleInfo& bound,
                                const BaseWeight& weight) {
  const ModuleInfo& module = part.info();
  const CheckpointTensor& tensor = *base_.checkpoint().Find(weight.tensor);
  OutputTensor& planned = Planned(NameOf(module, tensor), tensor);
  if (bound.kind == ModuleKind::kReplacement && bound.token_ids.empty()) {
    if (bound.weight_shape != tensor.shape) return AddResized(planned, part);
    auto layout = std::optional(BaseLayout::kOutIn);
    if (module.pairs() > 0) {
      layout = LayoutOfWeight(module, tensor.shape, base_.geometry(),
                              part.adapter->manifest().peft.fan_in_fan_out);
    }
    return AddSlice(planned, part, 0, tensor.shape,
                    layout == BaseLayout::kInOut ? WeightLayout::kInOut : WeightLayout::kOutIn);
  }
  const WeightLayout layout =
      weight.layout == BaseLayout::kInOut ? WeightLayout::kInOut : WeightLayout::kOutIn;
  if (module.kind == ModuleKind::kExperts) return AddExperts(part, planned, layout);
  return AddSlice(planned, part, 0, tensor.shape, layout);
}

absl::Status Planner::AddExperts(const MergePart& part, OutputTensor& planned,
                                 WeightLayout layout) {
  if (planned.shape.size() == 2) return AddSlice(planned, part, 0, planned.shape, layout);
  MergePart expert = part;
  const Shape shape(planned.shape.begin() + 1, planned.shape.end());
  for (expert.pair = 0; expert.pair < part.info().experts; ++expert.pair) {
    RETURN_IF_ERROR(AddSlice(planned, expert, expert.pair * shape[0], shape, layout));
  }
  return absl::OkStatus();
}

absl::Status Planner::AddResized(OutputTensor& planned, const MergePart& part) {
  const ModuleInfo& replaced = *part.ReplacedInfo();
  planned.resized = &(*part.adapter)->extras(*part.ReplacedIndex()).weight;
  planned.shape = replaced.weight_shape;
  return AddSlice(planned, part, 0, replaced.weight_shape, WeightLayout::kOutIn);
}

absl::Status Planner::AddSlice(OutputTensor& planned, const MergePart& part, int64_t first_row,
                               Shape shape, WeightLayout layout) {
  if (!IsComputeFloat(planned.source->dtype)) {
    return Error(Reason::kUnsupportedDtype,
                 fmt::format("tensor {} is {}: only F32, F16 and BF16 can be merged into",
                             Quoted(planned.name), DTypeName(planned.source->dtype)))
        .With("tensor", Printable(planned.name))
        .With("expected", "F32, F16 or BF16")
        .With("actual", std::string(DTypeName(planned.source->dtype)));
  }
  ASSIGN_OR_RETURN(const WeightMatrix matrix, MatrixOf(part, shape, layout));
  auto slice = std::ranges::find(planned.slices, first_row, &PlannedSlice::first_row);
  if (slice == planned.slices.end()) {
    planned.slices.push_back({first_row, matrix, std::move(shape), {part}});
    std::ranges::sort(planned.slices, {}, &PlannedSlice::first_row);
    return absl::OkStatus();
  }
  for (const MergePart& other : slice->parts) {
    if (other.adapter != part.adapter) continue;
    return TensorError(Reason::kBaseModelMismatch, planned,
                       fmt::format("is meant by two modules of one adapter: {} and {}",
                                   Quoted(other.info().path), Quoted(part.info().path)));
  }
  if (slice->matrix.layout != matrix.layout || slice->matrix.rows != matrix.rows) {
    return TensorError(Reason::kBaseModelMismatch, planned,
                       "is [out, in] to one adapter and [in, out] to another");
  }
  slice->parts.push_back(part);
  return absl::OkStatus();
}

absl::Status Planner::AddBias(const MergePart& part, const BaseBinding& binding) {
  if (!binding.bias) {
    return Error(Reason::kBaseModelMismatch,
                 fmt::format("module {}: the adapter has a bias for it (lora_bias), but the base "
                             "model's layer has none, and models of its kind would not read one",
                             Quoted(part.info().path)))
        .With("expected", "a bias")
        .With("actual", "none");
  }
  const CheckpointTensor& tensor = *base_.checkpoint().Find(binding.bias->tensor);
  OutputTensor& planned = Planned(tensor.name, tensor);
  if (!IsComputeFloat(tensor.dtype)) {
    return TensorError(
        Reason::kUnsupportedDtype, planned,
        fmt::format("is {}: only F32, F16 and BF16 can be merged into", DTypeName(tensor.dtype)));
  }
  planned.bias.push_back(part);
  return absl::OkStatus();
}

absl::Status Planner::CheckMatched() const {
  if (unmatched_.empty() || request_.allow_unmatched) return absl::OkStatus();
  std::string named;
  size_t count = 0;
  for (const std::string& path : unmatched_) {
    if (++count <= kMaxNamed) named += (count == 1 ? "" : ", ") + Quoted(path);
  }
  if (count > kMaxNamed) named += fmt::format(" and {} more", count - kMaxNamed);
  return Error(Reason::kModuleNotTargeted,
               fmt::format("the checkpoint has no tensors for {} modules of the adapters: {}; "
                           "allow_unmatched leaves them out",
                           count, named))
      .With("adapter", unmatched_adapter_)
      .With("module", Printable(*unmatched_.begin()))
      .With("field", "allow_unmatched");
}

// The config tells one size for all of them.
absl::Status Planner::CheckVocabulary(CheckpointPlan& plan) const {
  const OutputTensor* resized = nullptr;
  for (const OutputTensor& tensor : plan.tensors) {
    if (tensor.resized != nullptr) resized = &tensor;
  }
  if (resized == nullptr) return absl::OkStatus();
  plan.vocab_size = resized->shape[0];
  for (const OutputTensor& tensor : plan.tensors) {
    const std::string_view name = tensor.name;
    const bool is_vocabulary = name.ends_with(kWeight) && tensor.shape.size() == 2 &&
                               tensor.source->shape[0] == resized->source->shape[0] &&
                               IsVocabularyModule(name.substr(0, name.size() - kWeight.size()));
    if (tensor.resized == nullptr ? !is_vocabulary : tensor.shape[0] == *plan.vocab_size) continue;
    return TensorError(Reason::kBaseModelMismatch, tensor,
                       fmt::format("has {} rows, but {} gets {}: one vocabulary has one size",
                                   tensor.shape[0], Quoted(resized->name), *plan.vocab_size));
  }
  return absl::OkStatus();
}

absl::Status Planner::SetTypes() {
  if (!request_.dtype) return absl::OkStatus();
  for (auto& [name, tensor] : tensors_) {
    if (IsComputeFloat(tensor.source->dtype)) {
      tensor.dtype = *request_.dtype;
    } else if (IsFloat(tensor.source->dtype)) {
      return Annotate(TensorError(Reason::kUnsupportedDtype, tensor,
                                  fmt::format("is {}: only F32, F16 and BF16 can be converted",
                                              DTypeName(tensor.source->dtype))),
                      "field", "dtype");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<CheckpointPlan> Planner::Finish() {
  RETURN_IF_ERROR(CheckMatched());
  for (const auto& [name, tensor] : tensors_) {
    for (const PlannedSlice& slice : tensor.slices) RETURN_IF_ERROR(CheckAlone(slice.parts));
    for (const MergePart& part : tensor.bias) {
      if (!part.info().replaces_bias) continue;
      RETURN_IF_ERROR(CheckAlone(tensor.bias));
    }
  }
  for (const CheckpointTensor& tensor : base_.checkpoint().tensors()) Planned(tensor.name, tensor);
  RETURN_IF_ERROR(SetTypes());
  CheckpointPlan plan;
  for (auto& [name, tensor] : tensors_) plan.tensors.push_back(std::move(tensor));
  plan.unmatched.assign(unmatched_.begin(), unmatched_.end());
  plan.untied = untied_;
  RETURN_IF_ERROR(CheckVocabulary(plan));
  return plan;
}

}  // namespace

absl::StatusOr<CheckpointPlan> PlanCheckpoint(const BaseModel& base,
                                              const CheckpointMergeRequest& request) {
  Planner planner(base, request);
  for (const CheckpointAdapter& adapter : request.adapters) {
    RETURN_IF_ERROR(planner.AddAdapter(adapter));
  }
  return planner.Finish();
}

}  // namespace adapterd
