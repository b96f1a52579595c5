#include "core/base_model/base_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "core/adapter/base_model_names.h"
#include "core/adapter/module_index.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/base_model/module_patterns.h"
#include "core/compute/nf4.h"

namespace adapterd {
namespace {

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kBias = ".bias";
// What transformers calls an output head that shares the embedding's weight.
constexpr std::string_view kTiedHead = "lm_head";

bool IsWeight(std::string_view name) {
  return name.size() > kWeight.size() && name.ends_with(kWeight);
}

// Buffers of positions and masks; no quantiser stores weights in these.
bool IsIndex(DType dtype) { return dtype == DType::kI64 || dtype == DType::kBool; }

// By name, as nothing else tells them from linear layers; heads stay as they are, too, which is
// what bitsandbytes does.
bool IsTable(std::string_view path) {
  const std::string_view target = TargetOf(path);
  return IsVocabularyModule(path) || target == "wpe" ||
         target.find("embed") != std::string_view::npos;
}

class Planner {
 public:
  Planner(const BaseModel& base, const BaseLoadRequest& request, ModulePatterns patterns)
      : base_(base), request_(request), patterns_(std::move(patterns)) {}

  absl::StatusOr<BasePlan> Plan();

 private:
  absl::Status Add(const CheckpointTensor& tensor);
  absl::Status AddTiedHead();
  absl::Status CheckDType(const CheckpointTensor& tensor) const;
  // The bias that goes with the weight of `path`; nullptr when there is none.
  const CheckpointTensor* BiasOf(const std::string& path) const;
  // Whether `tensor` is some module's bias.
  bool IsBias(const CheckpointTensor& tensor) const;
  absl::Status SortModules();
  absl::Status AddBytes();

  const BaseModel& base_;
  const BaseLoadRequest& request_;
  ModulePatterns patterns_;
  BasePlan plan_;
};

absl::Status Planner::CheckDType(const CheckpointTensor& tensor) const {
  if (IsComputeFloat(tensor.dtype)) return absl::OkStatus();
  return Error(Reason::kUnsupportedDtype,
               fmt::format("tensor {} of the base model is {}, expected F32, F16 or BF16",
                           Quoted(tensor.name), DTypeName(tensor.dtype)))
      .With("tensor", Printable(tensor.name))
      .With("file", Printable(base_.checkpoint().files()[tensor.file].name()))
      .With("expected", "F32, F16 or BF16")
      .With("actual", std::string(DTypeName(tensor.dtype)));
}

const CheckpointTensor* Planner::BiasOf(const std::string& path) const {
  const CheckpointTensor* bias = base_.checkpoint().Find(path + std::string(kBias));
  return bias == nullptr || bias->shape.size() != 1 ? nullptr : bias;
}

bool Planner::IsBias(const CheckpointTensor& tensor) const {
  std::string_view name = tensor.name;
  if (!name.ends_with(kBias) || tensor.shape.size() != 1) return false;
  name.remove_suffix(kBias.size());
  return !name.empty() && base_.checkpoint().Find(fmt::format("{}{}", name, kWeight)) != nullptr;
}

HostedModule Described(const CheckpointTensor& tensor, std::string path, bool is_parameter,
                       const BaseGeometry& geometry) {
  HostedModule module;
  module.path = std::move(path);
  module.tensor = tensor.name;
  module.dtype = tensor.dtype;
  module.shape = tensor.shape;
  module.is_parameter = is_parameter;
  // Experts have a row for each output of each.
  const size_t row_dims =
      std::min<size_t>(is_parameter && tensor.shape.size() == 3 ? 2 : 1, tensor.shape.size());
  module.rows = 1;
  module.cols = 1;
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    (i < row_dims ? module.rows : module.cols) *= tensor.shape[i];
  }
  if (tensor.shape.size() == 2 && IsConv1dModule(module.path, geometry)) {
    module.layout = BaseLayout::kInOut;
  }
  return module;
}

absl::Status Planner::Add(const CheckpointTensor& tensor) {
  if (IsIndex(tensor.dtype) || IsBias(tensor)) return absl::OkStatus();
  const bool is_weight = IsWeight(tensor.name);
  std::string path = tensor.name;
  if (is_weight) path.resize(path.size() - kWeight.size());
  ASSIGN_OR_RETURN(const bool wanted, patterns_.Match(path));
  if (!wanted) return absl::OkStatus();
  RETURN_IF_ERROR(CheckDType(tensor));
  BaseModulePlan planned;
  planned.weight = &tensor;
  planned.bias = is_weight ? BiasOf(path) : nullptr;
  if (planned.bias != nullptr) RETURN_IF_ERROR(CheckDType(*planned.bias));
  if (is_weight && tensor.shape.size() == 2 && !IsTable(path)) {
    planned.nf4_block = request_.nf4_block;
  }
  planned.module = Described(tensor, std::move(path), !is_weight, base_.geometry());
  plan_.modules.push_back(std::move(planned));
  return absl::OkStatus();
}

// Without a word in the config a head is only assumed when it is asked for by its name.
absl::Status Planner::AddTiedHead() {
  const bool is_named = std::find(request_.modules.begin(), request_.modules.end(), kTiedHead) !=
                        request_.modules.end();
  if (!base_.geometry().tie_word_embeddings.value_or(is_named)) return absl::OkStatus();
  const BaseNames names(base_.checkpoint());
  if (!names.Find(kTiedHead, kWeight).empty()) return absl::OkStatus();
  const std::vector<const CheckpointTensor*> embeddings = names.FindTied(kTiedHead);
  if (embeddings.size() != 1 || IsIndex(embeddings[0]->dtype)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const bool wanted, patterns_.Match(kTiedHead));
  if (!wanted) return absl::OkStatus();
  RETURN_IF_ERROR(CheckDType(*embeddings[0]));
  BaseModulePlan head;
  head.weight = embeddings[0];
  head.module = Described(*embeddings[0], std::string(kTiedHead), false, base_.geometry());
  head.module.tensor = fmt::format("{}{}", kTiedHead, kWeight);
  plan_.modules.push_back(std::move(head));
  return absl::OkStatus();
}

absl::Status Planner::SortModules() {
  std::vector<BaseModulePlan>& modules = plan_.modules;
  std::sort(modules.begin(), modules.end(), [](const BaseModulePlan& a, const BaseModulePlan& b) {
    return a.module.path < b.module.path;
  });
  for (size_t i = 1; i < modules.size(); ++i) {
    if (modules[i - 1].module.path != modules[i].module.path) continue;
    return Error(Reason::kMalformedTensorFile,
                 fmt::format("the base model has tensors {} and {}: both would be module {}",
                             Quoted(modules[i - 1].weight->name), Quoted(modules[i].weight->name),
                             Quoted(modules[i].module.path)))
        .With("tensor", Printable(modules[i].weight->name));
  }
  // A tied head shares what the embedding reads, if that is there.
  for (BaseModulePlan& head : modules) {
    if (head.module.tensor == head.weight->name) continue;
    for (size_t i = 0; i < modules.size(); ++i) {
      if (&modules[i] != &head && modules[i].weight == head.weight) head.tied_to = i;
    }
    head.module.is_tied = head.tied_to.has_value();
  }
  return absl::OkStatus();
}

absl::Status Planner::AddBytes() {
  for (BaseModulePlan& planned : plan_.modules) {
    int64_t bytes = planned.bias == nullptr ? 0 : planned.bias->bytes;
    if (planned.nf4_block) {
      const auto packed =
          Nf4Matrix::BytesFor(planned.module.rows, planned.module.cols, *planned.nf4_block);
      if (!packed) return Error(Reason::kShapeMismatch, "the size of a module overflows");
      bytes += *packed;
    } else if (!planned.tied_to) {
      bytes += planned.weight->bytes;
    }
    planned.module.memory_bytes = bytes;
    plan_.bytes += bytes;  // of tensors that lie in files: no overflow
  }
  return absl::OkStatus();
}

absl::StatusOr<BasePlan> Planner::Plan() {
  for (const CheckpointTensor& tensor : base_.checkpoint().tensors()) {
    RETURN_IF_ERROR(Add(tensor));
  }
  RETURN_IF_ERROR(AddTiedHead());
  RETURN_IF_ERROR(patterns_.CheckAllMatched());
  RETURN_IF_ERROR(SortModules());
  RETURN_IF_ERROR(AddBytes());
  return std::move(plan_);
}

}  // namespace

absl::StatusOr<BasePlan> PlanBase(const BaseModel& base, const BaseLoadRequest& request) {
  ASSIGN_OR_RETURN(ModulePatterns patterns, ModulePatterns::Compile(request.modules));
  return Planner(base, request, std::move(patterns)).Plan();
}

}  // namespace adapterd
