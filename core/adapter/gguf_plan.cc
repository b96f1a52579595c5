#include "core/adapter/gguf_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "core/adapter/gguf_keys.h"
#include "core/adapter/peft_config.h"
#include "core/base/quote.h"
#include "core/tensor/transpose.h"

namespace adapterd {
namespace {

constexpr std::string_view kFactorA = ".lora_a";
constexpr std::string_view kFactorB = ".lora_b";

struct Pair {
  const GgufTensor* a = nullptr;
  const GgufTensor* b = nullptr;
};

PlannedTensor Planned(const GgufTensor& tensor, TensorRole role, std::string revision_role = "") {
  PlannedTensor planned;
  planned.role = role;
  planned.shape = tensor.shape;
  planned.offset = tensor.offset;
  planned.bytes = tensor.bytes;
  planned.name = tensor.name;
  planned.revision_role = std::move(revision_role);
  if (tensor.type == GgufType::kF16) planned.dtype = DType::kF16;
  if (tensor.type == GgufType::kBF16) planned.dtype = DType::kBF16;
  if (tensor.type == GgufType::kQ8_0) planned.encoding = Encoding::kQ8_0;
  return planned;
}

Tensor& Of(StoredTensors& stored, TensorRole role) { return stored[static_cast<size_t>(role)]; }

ModuleTensors FoldRope(const ModuleInfo& info, StoredTensors stored, const StoredTensors&) {
  Tensor& b = Of(stored, TensorRole::kLoraB);
  b = UndoRopeOrder(b, info.rope_heads);
  return FoldNothing(std::move(stored));
}

// [vocabulary, rank] to [rank, vocabulary].
ModuleTensors FoldEmbedding(const ModuleInfo&, StoredTensors stored, const StoredTensors&) {
  Tensor& a = Of(stored, TensorRole::kLoraA);
  a = TransposedMatrix(a);
  return FoldNothing(std::move(stored));
}

// One expert after the other: the first two of three dimensions become one.
ModuleTensors FoldExperts(const ModuleInfo&, StoredTensors stored, const StoredTensors&) {
  for (const TensorRole role : {TensorRole::kLoraA, TensorRole::kLoraB}) {
    Tensor& factor = Of(stored, role);
    const DType dtype = factor.dtype();
    const Shape flat = {factor.shape()[0] * factor.shape()[1], factor.shape()[2]};
    factor = Tensor(dtype, flat, std::move(factor).Release());
  }
  return FoldNothing(std::move(stored));
}

class Planner {
 public:
  Planner(const GgufKeys& keys, std::string_view file, const GgufHeads& heads,
          ProblemList& problems)
      : keys_(keys), file_(file), heads_(heads), problems_(problems) {}

  std::map<std::string, Pair> SortTensors(const std::vector<GgufTensor>& tensors);
  void Plan(const std::string& base_tensor, const Pair& pair);
  // By path; nullopt when there is none.
  std::optional<WeightsPlan> Finish();

 private:
  struct Part {
    ModuleInfo info;
    PlannedModule tensors;
    std::string gguf;  // "blk.0.attn_q.weight"
  };

  void Refuse(const GgufTensor& tensor, std::string_view what, std::string expected = "",
              std::string actual = "", Reason reason = Reason::kInvalidAdapter);
  void Refuse(const GgufTensor& tensor, const absl::Status& status);
  bool CheckShapes(const GgufModule& module, const Pair& pair);
  bool FindHeads(const GgufTensor& b, RopeHeads whose, ModuleInfo& info);
  void Scale(ModuleInfo& info) const;
  void WarnOfScale() const;
  void Warn(std::string message) const;

  const GgufKeys& keys_;
  const std::string_view file_;
  const GgufHeads& heads_;
  ProblemList& problems_;
  std::vector<Part> parts_;
  std::optional<int64_t> head_dim_;  // of the first module with heads
};

void Planner::Refuse(const GgufTensor& tensor, std::string_view what, std::string expected,
                     std::string actual, Reason reason) {
  Problem problem;
  problem.reason = reason;
  problem.file = Printable(file_);
  problem.tensor = Printable(tensor.name);
  problem.message = fmt::format("tensor {} in {} {}", Quoted(tensor.name), Printable(file_), what);
  if (!expected.empty()) {
    problem.message += fmt::format(": expected {}, found {}", expected, actual);
  }
  problem.expected = std::move(expected);
  problem.actual = std::move(actual);
  problems_.Add(std::move(problem));
}

void Planner::Refuse(const GgufTensor& tensor, const absl::Status& status) {
  const ErrorDetails details = GetErrorDetails(status);
  const absl::string_view why = status.message();
  absl::Status error =
      Error(details.reason, fmt::format("tensor {} in {}: {}", Quoted(tensor.name),
                                        Printable(file_), std::string(why.data(), why.size())))
          .With("file", Printable(file_))
          .With("tensor", Printable(tensor.name));
  for (const auto& [key, value] : details.metadata) error = Annotate(error, key, value);
  problems_.Add(error);
}

void Planner::Warn(std::string message) const {
  Problem problem;
  problem.severity = Severity::kWarning;
  problem.reason = Reason::kInvalidAdapter;
  problem.file = Printable(file_);
  problem.message = std::move(message);
  problems_.Add(std::move(problem));
}

std::map<std::string, Pair> Planner::SortTensors(const std::vector<GgufTensor>& tensors) {
  std::map<std::string, Pair> pairs;
  size_t norms = 0;
  for (const GgufTensor& tensor : tensors) {
    const std::string_view name = tensor.name;
    if (name.ends_with(kFactorA)) {
      pairs[std::string(name.substr(0, name.size() - kFactorA.size()))].a = &tensor;
    } else if (name.ends_with(kFactorB)) {
      pairs[std::string(name.substr(0, name.size() - kFactorB.size()))].b = &tensor;
    } else if (name.ends_with("_norm.weight")) {
      ++norms;
    } else {
      Refuse(tensor, "is neither a lora_a nor a lora_b: no rule explains it");
    }
  }
  if (norms > 0) {
    Warn(fmt::format("{} norms are left out, as llama.cpp leaves them out", norms));
  }
  return pairs;
}

bool Planner::CheckShapes(const GgufModule& module, const Pair& pair) {
  const size_t dims = module.is_experts ? 3 : 2;
  for (const GgufTensor* tensor : {pair.a, pair.b}) {
    if (tensor->shape.size() != dims) {
      Refuse(*tensor, "has the wrong number of dimensions", fmt::format("{}", dims),
             ShapeString(tensor->shape));
      return false;
    }
    if (std::find(tensor->shape.begin(), tensor->shape.end(), 0) != tensor->shape.end()) {
      Refuse(*tensor, "is empty", "elements", ShapeString(tensor->shape));
      return false;
    }
  }
  const Shape& a = pair.a->shape;
  const Shape& b = pair.b->shape;
  const int64_t rank_of_a = module.is_embedding ? a[dims - 1] : a[dims - 2];
  const int64_t rank = b[dims - 1];
  if (rank_of_a != rank) {
    Refuse(*pair.b,
           "has another rank than its lora_a (files of llama.cpp's old finetune tool have "
           "transposed factors)",
           fmt::format("[..., {}]", rank_of_a), ShapeString(b));
    return false;
  }
  if (rank > kMaxRank) {
    Refuse(*pair.b, "has too high a rank", fmt::format("at most {}", kMaxRank), ShapeString(b));
    return false;
  }
  if (module.is_experts && a[0] != b[0]) {
    Refuse(*pair.b, "has another number of experts than its lora_a", fmt::format("{}", a[0]),
           fmt::format("{}", b[0]));
    return false;
  }
  return true;
}

// All heads of a model have one size, which tells when the counts are wrong.
bool Planner::FindHeads(const GgufTensor& b, RopeHeads whose, ModuleInfo& info) {
  const auto heads = HeadsOfRows(heads_, whose, info.out_features);
  if (!heads.ok()) {
    Refuse(b, heads.status());
    return false;
  }
  info.rope_heads = *heads;
  const int64_t head_dim = info.out_features / *heads;
  if (!head_dim_) head_dim_ = head_dim;
  if (*head_dim_ == head_dim) return true;
  Refuse(b, "has heads of another size than modules before it, so head_counts cannot be right",
         fmt::format("heads of {} rows", *head_dim_), fmt::format("{}", head_dim),
         Reason::kBaseModelMismatch);
  return false;
}

void Planner::Scale(ModuleInfo& info) const {
  const auto rank = static_cast<double>(info.rank);
  info.alpha = keys_.alpha == 0 ? rank : keys_.alpha;
  info.scale = info.alpha / rank;
}

void Planner::Plan(const std::string& base_tensor, const Pair& pair) {
  const GgufTensor& any = pair.a != nullptr ? *pair.a : *pair.b;
  if (pair.a == nullptr || pair.b == nullptr) {
    Refuse(any, fmt::format("has no {} beside it", pair.a == nullptr ? "lora_a" : "lora_b"));
    return;
  }
  const auto module = ModuleOfGgufTensor(*keys_.architecture, base_tensor);
  if (!module) {
    Refuse(any, fmt::format("belongs to no module of architecture {} that is known here",
                            keys_.architecture->name));
    return;
  }
  if (!CheckShapes(*module, pair)) return;
  Part part;
  ModuleInfo& info = part.info;
  const Shape& a = pair.a->shape;
  const Shape& b = pair.b->shape;
  info.path = module->path;
  info.rank = b.back();
  info.in_features = module->is_embedding ? a[0] : a.back();
  info.out_features = b[b.size() - 2];
  info.lora_a_tensor = pair.a->name;
  info.lora_b_tensor = pair.b->name;
  Scale(info);
  std::string role_a;
  std::string role_b;
  if (module->is_embedding) {
    info.kind = ModuleKind::kEmbedding;
    role_a = "lora_a_transposed";
    part.tensors.fold = FoldEmbedding;
  } else if (module->is_experts) {
    info.kind = ModuleKind::kExperts;
    info.experts = a[0];
    part.tensors.fold = FoldExperts;
  } else if (module->rope != RopeHeads::kNone) {
    if (!FindHeads(*pair.b, module->rope, info)) return;
    role_b = "lora_b_rope";
    part.tensors.fold = FoldRope;
  }
  PlannedTensor planned_a = Planned(*pair.a, TensorRole::kLoraA, role_a);
  PlannedTensor planned_b = Planned(*pair.b, TensorRole::kLoraB, role_b);
  info.lora_a_dtype = planned_a.dtype;
  info.lora_b_dtype = planned_b.dtype;
  part.tensors.tensors = {std::move(planned_a), std::move(planned_b)};
  if (pair.b->offset < pair.a->offset) {
    std::swap(part.tensors.tensors[0], part.tensors.tensors[1]);
  }
  part.gguf = base_tensor;
  parts_.push_back(std::move(part));
}

void Planner::WarnOfScale() const {
  if (keys_.alpha == 0) {
    Warn("adapter.lora.alpha is missing or 0: every scale is 1, as in llama.cpp");
    return;
  }
  const ModuleInfo& first = parts_.front().info;
  Warn(
      fmt::format("every scale is alpha / rank, {} / {} = {} of {}; an adapter that was trained "
                  "with rsLoRA or with alphas of its own for some modules had others, which no "
                  "GGUF can say",
                  first.alpha, first.rank, first.scale, Quoted(first.path)));
}

std::optional<WeightsPlan> Planner::Finish() {
  if (parts_.empty()) return std::nullopt;
  std::sort(parts_.begin(), parts_.end(),
            [](const Part& x, const Part& y) { return x.info.path < y.info.path; });
  WarnOfScale();
  WeightsPlan plan;
  plan.manifest.format = AdapterFormat::kGguf;
  plan.manifest.method = "lora";
  std::vector<std::string> paths;
  std::vector<ModuleIndex::Alias> aliases;
  for (size_t i = 0; i < parts_.size(); ++i) {
    Part& part = parts_[i];
    paths.push_back(part.info.path);
    constexpr std::string_view kWeight = ".weight";
    aliases.emplace_back(part.gguf.substr(0, part.gguf.size() - kWeight.size()), i);
    aliases.emplace_back(std::move(part.gguf), i);
    plan.manifest.modules.push_back(std::move(part.info));
    plan.modules.push_back(std::move(part.tensors));
  }
  plan.manifest.index = ModuleIndex(paths, aliases);
  return plan;
}

}  // namespace

std::optional<WeightsPlan> BuildGgufPlan(const GgufHeader& header, std::string_view file,
                                         const GgufHeads& heads, ProblemList& problems) {
  const auto keys = ReadGgufKeys(header, file, problems);
  if (!keys) return std::nullopt;
  Planner planner(*keys, file, heads, problems);
  const auto pairs = planner.SortTensors(header.tensors);
  for (const auto& [base_tensor, pair] : pairs) planner.Plan(base_tensor, pair);
  auto plan = planner.Finish();
  if (!plan && !problems.has_errors()) {
    problems.Add(
        Error(Reason::kInvalidAdapter, fmt::format("{} holds no LoRA pair at all", Printable(file)))
            .With("file", Printable(file)));
  }
  return plan;
}

std::optional<WeightsPlan> PlanGguf(const SourceFiles& files, const std::string& base_model,
                                    const GgufHeads& heads, ProblemList& problems) {
  const auto header = ReadGgufHeader(*files.weights);
  if (!header.ok()) {
    problems.Add(header.status());
    return std::nullopt;
  }
  auto plan = BuildGgufPlan(*header, files.weights->name(), heads, problems);
  if (plan) plan->manifest.base_model = base_model;
  return plan;
}

}  // namespace adapterd
