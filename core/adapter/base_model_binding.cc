#include "core/adapter/base_model_binding.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "core/base/error.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kBias = ".bias";
// A message names no more than this.
constexpr size_t kMaxNamed = 5;

using Matches = std::vector<const CheckpointTensor*>;

std::string Described(const CheckpointTensor& tensor) {
  return fmt::format("{} {}", DTypeName(tensor.dtype), Printable(ShapeString(tensor.shape)));
}

// Of the module at `path`, whose weight is the tensor `weight`: beside it, unless the weight is
// another module's that it shares.
std::string BiasName(std::string_view path, std::string_view weight) {
  std::string_view module = weight;
  module.remove_suffix(kWeight.size());
  return fmt::format("{}{}", TargetOf(module) == TargetOf(path) ? module : path, kBias);
}

// Modules that a warning is about.
class Named {
 public:
  void Add(std::string_view name) {
    if (names_.empty()) first_ = std::string(name);
    if (count_ < kMaxNamed) names_ += (count_ == 0 ? "" : ", ") + Quoted(name);
    ++count_;
  }
  size_t count() const { return count_; }
  const std::string& first() const { return first_; }
  std::string text() const {
    return count_ <= kMaxNamed ? names_ : fmt::format("{} and {} more", names_, count_ - kMaxNamed);
  }

 private:
  std::string first_;
  std::string names_;
  size_t count_ = 0;
};

class Binder {
 public:
  Binder(const BaseTensors& base, const BindOptions& options, ProblemList& problems)
      : base_(base), options_(options), problems_(problems), names_(base.tensors()) {}

  void CheckReplication();
  BaseBinding Bind(const ModuleInfo& module);
  void AddWarnings();
  void AddNothingFound(const ModuleInfo& first, size_t count);
  bool found_any() const { return found_any_; }

 private:
  Matches FindWeight(const ModuleInfo& module, const std::string& path);
  void BindWeight(const ModuleInfo& module, const CheckpointTensor& tensor, BaseBinding& binding);
  // `tensor`: the bias, or nullptr when there is none.
  void BindBias(const ModuleInfo& module, const CheckpointTensor* tensor, BaseBinding& binding);
  void BindScale(const ModuleInfo& module, BaseBinding& binding);
  // For modules that replace all of the tensor, or rows of it.
  bool CheckReplacement(const ModuleInfo& module, const CheckpointTensor& tensor);
  bool CheckTokenRows(const ModuleInfo& module, const CheckpointTensor& tensor);
  void Mismatch(const ModuleInfo& module, const CheckpointTensor* tensor, std::string_view message,
                std::string expected = "", std::string actual = "");
  void MismatchedShape(const ModuleInfo& module, const CheckpointTensor& tensor,
                       std::string expected);
  void Warn(const Named& named, std::string_view message);

  const BaseTensors& base_;
  const BindOptions& options_;
  ProblemList& problems_;
  const BaseNames names_;
  bool found_any_ = false;
  Named missing_;
  Named ambiguous_;
  Named resized_;
  Named unscaled_;
};

void Binder::Mismatch(const ModuleInfo& module, const CheckpointTensor* tensor,
                      std::string_view message, std::string expected, std::string actual) {
  Problem problem;
  problem.reason = Reason::kBaseModelMismatch;
  problem.message = fmt::format("module {}: {}", Quoted(module.path), message);
  problem.module = Printable(module.path);
  if (tensor != nullptr) {
    problem.tensor = Printable(tensor->name);
    problem.file = Printable(base_.FileOf(*tensor));
  }
  problem.expected = std::move(expected);
  problem.actual = std::move(actual);
  problems_.Add(std::move(problem));
}

void Binder::MismatchedShape(const ModuleInfo& module, const CheckpointTensor& tensor,
                             std::string expected) {
  const std::string actual = Described(tensor);
  const std::string message = fmt::format("the base model's tensor {} should be {}, found {}",
                                          Quoted(tensor.name), expected, actual);
  Mismatch(module, &tensor, message, std::move(expected), actual);
}

void Binder::CheckReplication() {
  const auto layers = base_.geometry().num_hidden_layers;
  if (!layers) return;
  for (const LayerRange& range : options_.layer_replication) {
    if (range.end <= *layers) continue;
    problems_.Add(Error(Reason::kBaseModelMismatch,
                        fmt::format("layer_replication takes layers [{}, {}) of a base model that "
                                    "has {}",
                                    range.start, range.end, *layers))
                      .With("field", "layer_replication")
                      .With("expected", fmt::format("at most {}", *layers))
                      .With("actual", range.end));
  }
}

Matches Binder::FindWeight(const ModuleInfo& module, const std::string& path) {
  const bool is_parameter = module.kind == ModuleKind::kExperts && !module.parameter.empty();
  if (is_parameter) return names_.Find(path, "");
  Matches matches = names_.Find(path, kWeight);
  // Without a word in the config, a checkpoint without a head can only mean the embedding.
  if (!matches.empty() || !base_.geometry().tie_word_embeddings.value_or(true)) return matches;
  return names_.FindTied(path);
}

BaseBinding Binder::Bind(const ModuleInfo& module) {
  BaseBinding binding;
  const auto path = OriginalLayerPath(module.path, options_.layer_replication);
  if (!path) {
    found_any_ = true;  // what follows about other modules would only repeat this
    Mismatch(module, nullptr, "its layer is beyond the stack that layer_replication makes");
    return binding;
  }
  const bool only_bias = module.kind == ModuleKind::kReplacement && module.weight_shape.empty();
  const Matches matches = only_bias ? names_.Find(*path, kBias) : FindWeight(module, *path);
  if (matches.size() != 1) {
    binding.ambiguous = !matches.empty();
    (matches.empty() ? missing_ : ambiguous_).Add(module.path);
    return binding;
  }
  found_any_ = true;
  if (only_bias) {
    BindBias(module, matches[0], binding);
    return binding;
  }
  BindWeight(module, *matches[0], binding);
  if (module.kind == ModuleKind::kEmbedding) {
    BindScale(module, binding);
  } else if (module.kind != ModuleKind::kExperts && binding.weight) {
    BindBias(module, base_.Find(BiasName(*path, matches[0]->name)), binding);
  }
  return binding;
}

void Binder::BindWeight(const ModuleInfo& module, const CheckpointTensor& tensor,
                        BaseBinding& binding) {
  auto layout = std::optional(BaseLayout::kOutIn);
  if (module.kind == ModuleKind::kReplacement) {
    if (!CheckReplacement(module, tensor)) return;
  } else {
    layout = LayoutOfWeight(module, tensor.shape, base_.geometry(), options_.fan_in_fan_out);
    if (!layout) {
      MismatchedShape(module, tensor,
                      ExpectedShape(module, base_.geometry(), options_.fan_in_fan_out));
      return;
    }
  }
  binding.weight = BaseWeight{tensor.name, tensor.dtype, tensor.shape, *layout};
}

bool Binder::CheckReplacement(const ModuleInfo& module, const CheckpointTensor& tensor) {
  if (!module.token_ids.empty()) return CheckTokenRows(module, tensor);
  const Shape& wanted = module.weight_shape;
  if (tensor.shape == wanted) return true;
  const bool is_vocabulary =
      IsVocabularyModule(module.path) ||
      (!tensor.shape.empty() && base_.geometry().vocab_size == tensor.shape[0]);
  if (is_vocabulary && wanted.size() == 2 && tensor.shape.size() == 2 &&
      wanted[1] == tensor.shape[1] && wanted[0] > tensor.shape[0]) {
    resized_.Add(module.path);
    return true;
  }
  MismatchedShape(module, tensor, ExpectedShape(module, base_.geometry(), false));
  return false;
}

bool Binder::CheckTokenRows(const ModuleInfo& module, const CheckpointTensor& tensor) {
  const int64_t columns = module.weight_shape.empty() ? 0 : module.weight_shape.back();
  if (tensor.shape.size() != 2 || tensor.shape[1] != columns) {
    MismatchedShape(module, tensor, fmt::format("[tokens, {}]", columns));
    return false;
  }
  const auto [least, most] = std::minmax_element(module.token_ids.begin(), module.token_ids.end());
  if (*least >= 0 && *most < tensor.shape[0]) return true;
  const int64_t outside = *least < 0 ? *least : *most;
  Mismatch(module, &tensor,
           fmt::format("token id {} is not one of the {} rows of {}", outside, tensor.shape[0],
                       Quoted(tensor.name)),
           fmt::format("from 0 to {}", tensor.shape[0] - 1), std::to_string(outside));
  return false;
}

void Binder::BindBias(const ModuleInfo& module, const CheckpointTensor* tensor,
                      BaseBinding& binding) {
  if (tensor == nullptr) {
    if (!module.replaces_bias) return;
    Mismatch(module, nullptr, "the adapter replaces its bias, but the base model's module has none",
             "a bias", "none");
    return;
  }
  const bool has_shape = module.kind == ModuleKind::kReplacement && !module.weight_shape.empty();
  const int64_t elements = has_shape ? module.weight_shape[0] : module.out_features;
  if (tensor->shape != Shape{elements}) {
    MismatchedShape(module, *tensor, fmt::format("[{}]", elements));
    return;
  }
  binding.bias = BaseWeight{tensor->name, tensor->dtype, tensor->shape, BaseLayout::kOutIn};
}

void Binder::BindScale(const ModuleInfo& module, BaseBinding& binding) {
  const auto scale = EmbeddingScale(base_.geometry(), module.path);
  if (base_.geometry().model_type.empty()) unscaled_.Add(module.path);
  if (scale) {
    binding.embedding_scale = *scale;
    return;
  }
  Problem problem;
  problem.reason = Reason::kUnsupportedAdapter;
  problem.module = Printable(module.path);
  problem.field = std::string(base_.field());
  problem.message = fmt::format(
      "module {}: models of type {} may scale their embeddings, by a factor that is not known here",
      Quoted(module.path), Quoted(base_.geometry().text_model_type));
  problems_.Add(std::move(problem));
}

void Binder::Warn(const Named& named, std::string_view message) {
  if (named.count() == 0) return;
  Problem problem;
  problem.severity = Severity::kWarning;
  problem.reason = Reason::kBaseModelMismatch;
  problem.module = Printable(named.first());
  problem.message = fmt::format("{}: {}", message, named.text());
  problems_.Add(std::move(problem));
}

void Binder::AddWarnings() {
  Warn(missing_, "not found in the base model and so not checked");
  Warn(ambiguous_, "more than one tensor of the base model may be meant, none was checked");
  Warn(resized_, "replaced with more rows than the base model's vocabulary has");
  Warn(unscaled_, "the base model has no config.json, its embedding's scale was taken for 1");
}

void Binder::AddNothingFound(const ModuleInfo& first, size_t count) {
  const auto& tensors = base_.tensors();
  Problem problem;
  problem.reason = Reason::kBaseModelMismatch;
  problem.field = std::string(base_.field());
  problem.module = Printable(first.path);
  problem.message = fmt::format(
      "none of the adapter's {} modules can be told in the base model {}: {} tensors like {}, but "
      "nothing for {}",
      count, Quoted(base_.source()), tensors.size(), Quoted(tensors.empty() ? "" : tensors[0].name),
      Quoted(first.path));
  problems_.Add(std::move(problem));
}

}  // namespace

std::vector<BaseBinding> BindToBase(const std::vector<ModuleInfo>& modules, const BaseTensors& base,
                                    const BindOptions& options, ProblemList& problems) {
  Binder binder(base, options, problems);
  binder.CheckReplication();
  std::vector<BaseBinding> bindings;
  bindings.reserve(modules.size());
  for (const ModuleInfo& module : modules) bindings.push_back(binder.Bind(module));
  if (binder.found_any() || modules.empty()) {
    binder.AddWarnings();
  } else {
    binder.AddNothingFound(modules.front(), modules.size());
  }
  return bindings;
}

}  // namespace adapterd
