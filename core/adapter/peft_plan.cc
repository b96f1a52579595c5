#include "core/adapter/peft_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "core/adapter/peft_keys.h"
#include "core/adapter/peft_patterns.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

// The factors of one module, as far as the file has them.
struct Pair {
  const SafetensorsEntry* a = nullptr;
  const SafetensorsEntry* b = nullptr;
};

struct Unsupported {
  std::string_view what;
  // Config keys that explain such a tensor: when one was refused, the tensor is no further news.
  std::array<std::string_view, 2> keys;
};

Unsupported DescribeUnsupported(PeftTensorKind kind) {
  switch (kind) {
    case PeftTensorKind::kLoraBias:
      return {"a bias on a factor", {"lora_bias", "lora_bias"}};
    case PeftTensorKind::kEmbedding:
      return {"a factor of an embedding", {}};
    case PeftTensorKind::kMagnitude:
      return {"a magnitude vector of DoRA", {"use_dora", "use_dora"}};
    case PeftTensorKind::kNested:
      return {"a factor of an expert parameter or of attention in one piece",
              {"target_parameters", "target_parameters"}};
    case PeftTensorKind::kVariant:
      return {"a tensor of a LoRA variant", {"kasa_config", "kasa_config"}};
    case PeftTensorKind::kTokenRows:
      return {"replacement rows of an embedding",
              {"trainable_token_indices", "trainable_token_indices"}};
    case PeftTensorKind::kBias:
      return {"a bias that replaces one of the base model", {"bias", "modules_to_save"}};
    default:
      return {"a weight that replaces one of the base model", {"modules_to_save", "bias"}};
  }
}

// What makes a tensor's name unfit, or nothing.
std::string_view NameFault(std::string_view name) {
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    // The lines that the revision digests end with a line feed and are divided by tabs.
    if (byte < 0x20 || byte == 0x7f) return "has a control character in its name";
  }
  const auto dots = static_cast<size_t>(std::count(name.begin(), name.end(), '.'));
  return dots >= kMaxPathComponents ? "has too many components in its name" : "";
}

class PlanBuilder {
 public:
  PlanBuilder(const PeftConfig& config, std::string_view file, ProblemList& problems)
      : config_(config), file_(file), problems_(problems), patterns_(config, problems) {}

  std::optional<PeftPlan> Build(const SafetensorsHeader& header) {
    for (const SafetensorsEntry& tensor : header.tensors) Sort(tensor);
    CheckAdapterNames();
    for (const auto& [path, pair] : pairs_) CheckPair(path, pair);
    if (header.tensors.empty() || (pairs_.empty() && !problems_.has_errors())) {
      Refuse(Reason::kInvalidAdapter, nullptr, "", "holds no LoRA pair at all");
    }
    CheckPatternOrder();
    if (problems_.has_errors()) return std::nullopt;
    WarnOfUnusedTargets();
    return Finish();
  }

 private:
  void Refuse(Reason reason, const SafetensorsEntry* tensor, std::string_view module,
              std::string_view what, std::string expected = "", std::string actual = "") {
    Problem problem;
    problem.reason = reason;
    problem.file = file_;
    problem.module = Printable(module);
    if (tensor == nullptr) {
      problem.message = fmt::format("{} {}", Printable(file_), what);
    } else {
      problem.tensor = Printable(tensor->name);
      problem.message =
          fmt::format("tensor {} in {} {}", Quoted(tensor->name), Printable(file_), what);
    }
    if (!expected.empty()) {
      problem.message += fmt::format(": expected {}, found {}", expected, actual);
    }
    problem.expected = std::move(expected);
    problem.actual = std::move(actual);
    problems_.Add(std::move(problem));
  }

  void Sort(const SafetensorsEntry& tensor) {
    if (const std::string_view fault = NameFault(tensor.name); !fault.empty()) {
      return Refuse(Reason::kInvalidAdapter, &tensor, "", fault);
    }
    PeftKey key = ParsePeftKey(tensor.name);
    const bool is_a = key.kind == PeftTensorKind::kLoraA;
    if (!is_a && key.kind != PeftTensorKind::kLoraB) return SortOther(tensor, key);
    ++adapter_names_[key.adapter_name];
    Pair& pair = pairs_[key.module];
    const SafetensorsEntry*& factor = is_a ? pair.a : pair.b;
    if (factor != nullptr) {
      return Refuse(Reason::kInvalidAdapter, &tensor, key.module,
                    fmt::format("is the same factor of module {} as {}", Quoted(key.module),
                                Quoted(factor->name)));
    }
    factor = &tensor;
  }

  void SortOther(const SafetensorsEntry& tensor, const PeftKey& key) {
    const Unsupported unsupported = DescribeUnsupported(key.kind);
    for (const std::string_view explaining : unsupported.keys) {
      if (config_.unsupported_keys.contains(explaining)) return;
    }
    if (key.kind == PeftTensorKind::kUnknown && !IsClassifier(key.module)) {
      return Refuse(Reason::kInvalidAdapter, &tensor, "",
                    "is not explained by any rule of LoRA; ignoring it could change the result");
    }
    Refuse(Reason::kUnsupportedAdapter, &tensor,
           key.kind == PeftTensorKind::kEmbedding ? key.module : "",
           fmt::format("is {}, which is not supported", unsupported.what));
  }

  // The heads that PEFT saves beside an adapter for classification, whole or in parts.
  bool IsClassifier(std::string_view name) const {
    if (config_.task_type != "SEQ_CLS" && config_.task_type != "TOKEN_CLS") return false;
    for (const std::string_view head : {"classifier.", "score."}) {
      if (name.find(head) != std::string_view::npos) return true;
    }
    return false;
  }

  void CheckAdapterNames() {
    if (adapter_names_.size() < 2) return;
    std::vector<std::string> names;
    for (const auto& [name, count] : adapter_names_) {
      names.push_back(name.empty() ? "none" : Quoted(name));
      if (names.size() == 4) break;
    }
    Refuse(Reason::kInvalidAdapter, nullptr, "",
           fmt::format("holds factors under several adapter names ({}): one file, one adapter",
                       fmt::join(names, ", ")));
  }

  void CheckPair(const std::string& path, const Pair& pair) {
    const SafetensorsEntry* any = pair.a != nullptr ? pair.a : pair.b;
    const std::optional<bool> targeted = patterns_.IsTargeted(path);
    if (targeted != true && config_.unsupported_keys.contains("target_parameters")) return;
    if (targeted == false) {
      return Refuse(
          Reason::kInvalidAdapter, any, path,
          fmt::format("belongs to module {}, which the config does not target", Quoted(path)));
    }
    if (pair.a == nullptr || pair.b == nullptr) {
      const std::string_view missing = pair.a == nullptr ? "lora_A" : "lora_B";
      Refuse(Reason::kInvalidAdapter, any, path,
             fmt::format("has no {} beside it: module {} is incomplete", missing, Quoted(path)));
    }
    const bool convolution = IsConvolution(pair);
    const bool a_usable =
        pair.a != nullptr && CheckFactor(*pair.a, path, "[rank, in]", convolution);
    const bool b_usable =
        pair.b != nullptr && CheckFactor(*pair.b, path, "[out, rank]", convolution);
    if (a_usable && b_usable) AddModule(path, *pair.a, *pair.b);
  }

  // A Conv1d's factors both have three dimensions; a linear layer's with one too many are broken.
  static bool IsConvolution(const Pair& pair) {
    const size_t a_dims = pair.a == nullptr ? 0 : pair.a->shape.size();
    const size_t b_dims = pair.b == nullptr ? 0 : pair.b->shape.size();
    return std::max(a_dims, b_dims) > 3 || std::min(a_dims, b_dims) == 3;
  }

  bool CheckFactor(const SafetensorsEntry& tensor, std::string_view path, std::string_view expected,
                   bool convolution) {
    const auto& shape = tensor.shape;
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) {
      Refuse(Reason::kInvalidAdapter, &tensor, path, "is empty", std::string(expected),
             ShapeString(shape));
      return false;
    }
    if (shape.size() != 2) {
      Refuse(convolution ? Reason::kUnsupportedAdapter : Reason::kInvalidAdapter, &tensor, path,
             convolution ? "belongs to a convolution, which is not supported" : "is not 2-D",
             std::string(expected), ShapeString(shape));
      return false;
    }
    if (!IsComputeFloat(tensor.dtype)) {
      Refuse(Reason::kUnsupportedDtype, &tensor, path, "has a dtype that factors cannot have",
             "F32, F16 or BF16", std::string(DTypeName(tensor.dtype)));
      return false;
    }
    return true;
  }

  void AddModule(const std::string& path, const SafetensorsEntry& a, const SafetensorsEntry& b) {
    const int64_t rank = a.shape[0];
    const auto ranks = patterns_.RanksOf(path);
    const auto alphas = patterns_.AlphasOf(path);
    if (b.shape[1] != rank) {
      return Refuse(Reason::kInvalidAdapter, &b, path, "has another rank than its lora_A",
                    fmt::format("[{}, {}]", b.shape[0], rank), ShapeString(b.shape));
    }
    if (ranks && std::find(ranks->begin(), ranks->end(), rank) == ranks->end()) {
      return Refuse(Reason::kInvalidAdapter, &a, path, "has another rank than the config says",
                    fmt::format("rank {}", ranks->front()), fmt::format("rank {}", rank));
    }
    if (!ranks || !alphas) return;  // refused already
    if (ranks->front() != rank && order_lost_.empty()) order_lost_ = path;
    const bool ambiguous = std::count(alphas->begin(), alphas->end(), alphas->front()) !=
                           static_cast<ptrdiff_t>(alphas->size());
    if (ambiguous && ambiguous_alpha_.empty()) ambiguous_alpha_ = path;
    const double alpha = alphas->front();
    ModuleInfo module;
    module.path = path;
    module.in_features = a.shape[1];
    module.out_features = b.shape[0];
    module.rank = rank;
    module.alpha = alpha;
    const auto r = static_cast<double>(rank);
    module.scale = alpha / (config_.use_rslora ? std::sqrt(r) : r);
    module.lora_a_dtype = a.dtype;
    module.lora_b_dtype = b.dtype;
    module.lora_a_tensor = a.name;
    module.lora_b_tensor = b.name;
    const size_t index = plan_.manifest.modules.size();
    plan_.manifest.modules.push_back(std::move(module));
    plan_.tensors.push_back({index, false, a.dtype, a.shape, a.offset, a.bytes});
    plan_.tensors.push_back({index, true, b.dtype, b.shape, b.offset, b.bytes});
  }

  void Warn(std::string_view field, std::string message) {
    Problem problem;
    problem.severity = Severity::kWarning;
    problem.reason = Reason::kInvalidAdapter;
    problem.file = config_.file;
    problem.field = field;
    problem.message = std::move(message);
    problems_.Add(std::move(problem));
  }

  // PEFT sorts the patterns when it saves, so that their order may not be the one of the training.
  // A rank says its own truth, an alpha does not: where the ranks prove another order, an alpha
  // that hangs on the order is a guess.
  void CheckPatternOrder() {
    if (!order_lost_.empty() && !ambiguous_alpha_.empty()) {
      return Refuse(
          Reason::kInvalidAdapter, nullptr, ambiguous_alpha_,
          fmt::format("has ranks (module {}) that show that the patterns of the config are "
                      "not in their order of training, and the alpha of module {} "
                      "depends on that order",
                      Quoted(order_lost_), Quoted(ambiguous_alpha_)));
    }
    if (!order_lost_.empty()) {
      Warn("rank_pattern", fmt::format("{}: the rank of module {} is not that of the first pattern "
                                       "that matches but of a later one; tensors decide",
                                       config_.file, Quoted(order_lost_)));
    }
    if (!ambiguous_alpha_.empty()) {
      Warn("alpha_pattern", fmt::format("{}: module {} matches patterns with different alphas; the "
                                        "first in the file is taken, as PEFT does",
                                        config_.file, Quoted(ambiguous_alpha_)));
    }
  }

  void WarnOfUnusedTargets() {
    for (const std::string& name : patterns_.UnusedTargets()) {
      Warn("target_modules",
           fmt::format("{}: no tensors for target module {}", config_.file, Quoted(name)));
    }
  }

  PeftPlan Finish() {
    AdapterManifest& manifest = plan_.manifest;
    manifest.format = AdapterFormat::kPeft;
    manifest.method = config_.use_rslora ? "rslora" : "lora";
    manifest.base_model = config_.base_model;
    manifest.lora_dropout = config_.lora_dropout;
    std::vector<std::string> paths;
    for (const ModuleInfo& module : manifest.modules) paths.push_back(module.path);
    manifest.index = ModuleIndex(paths);
    std::sort(plan_.tensors.begin(), plan_.tensors.end(),
              [](const auto& x, const auto& y) { return x.offset < y.offset; });
    return std::move(plan_);
  }

  const PeftConfig& config_;
  const std::string file_;
  ProblemList& problems_;
  PeftPatterns patterns_;
  std::map<std::string, Pair> pairs_;  // by path, so modules come out sorted
  std::map<std::string, int64_t> adapter_names_;
  std::string order_lost_;       // the first module that shows it; empty: none
  std::string ambiguous_alpha_;  // the same
  PeftPlan plan_;
};

}  // namespace

std::optional<PeftPlan> BuildPeftPlan(const PeftConfig& config, const SafetensorsHeader& header,
                                      std::string_view weights_file, ProblemList& problems) {
  return PlanBuilder(config, weights_file, problems).Build(header);
}

}  // namespace adapterd
