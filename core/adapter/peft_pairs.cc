#include "core/adapter/peft_pairs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/adapter/plan_parts.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

// ranknum + 1e-5, which PEFT divides by (peft/tuners/adalora/layer.py).
constexpr double kAdaLoraEpsilon = 1e-5;

constexpr std::string_view kShapeA = "[rank, in]";
constexpr std::string_view kShapeB = "[out, rank]";

bool IsConvolutionPair(const PeftPair& pair) {
  const SafetensorsEntry* a = pair.Get(TensorRole::kLoraA);
  const SafetensorsEntry* b = pair.Get(TensorRole::kLoraB);
  return a != nullptr && b != nullptr && IsConvolution(*a, *b);
}

PlannedPart StartPeftPair(const std::string& path, ModuleKind kind, const PeftPair& pair) {
  return StartPair(path, kind, *pair.Get(TensorRole::kLoraA), *pair.Get(TensorRole::kLoraB));
}

Problem ConfigWarning(const PeftConfig& config, std::string_view field, std::string message) {
  Problem problem;
  problem.severity = Severity::kWarning;
  problem.reason = Reason::kInvalidAdapter;
  problem.file = config.file;
  problem.field = field;
  problem.message = std::move(message);
  return problem;
}

}  // namespace

PairPlanner::PairPlanner(const PeftConfig& config, const PeftTensors& tensors,
                         const BaseFacts* base, TensorChecks& checks, ProblemList& problems)
    : config_(config),
      tensors_(tensors),
      base_(base),
      checks_(checks),
      problems_(problems),
      patterns_(config, problems) {
  if (config.kept_ranks) kept_ranks_.insert(config.kept_ranks->begin(), config.kept_ranks->end());
}

std::optional<PlannedPart> PairPlanner::Plan(const std::string& path, int base_layers,
                                             const PeftPair& pair) {
  const auto parameters = TargetedParameters(path, config_.target_parameters);
  if (!parameters.ok()) {
    checks_.Refuse(parameters.status());
    return std::nullopt;
  }
  if (!parameters->empty()) return PlanParameter(path, base_layers, pair, *parameters);
  const std::optional<bool> targeted = patterns_.IsTargeted(path);
  if (targeted == false || base_layers > 0) {
    checks_.Refuse({.tensor = pair.Any(),
                    .module = path,
                    .what = fmt::format("belongs to module {}, which the config does not target",
                                        Quoted(path))});
    return std::nullopt;
  }
  switch (config_.method) {
    case PeftMethod::kAdaLora:
      return PlanAdaLora(path, pair);
    case PeftMethod::kVera:
      return PlanVera(path, pair);
    default:
      return PlanLora(path, pair);
  }
}

std::optional<PlannedPart> PairPlanner::PlanLora(const std::string& path, const PeftPair& pair) {
  bool usable = checks_.Complete(pair, path, {TensorRole::kLoraA, TensorRole::kLoraB});
  if (config_.use_dora) usable &= checks_.Complete(pair, path, {TensorRole::kMagnitude});
  if (config_.lora_bias && !pair.is_embedding) {
    usable &= checks_.Complete(pair, path, {TensorRole::kLoraBias});
  }
  const bool convolution = !pair.is_embedding && IsConvolutionPair(pair);
  const auto blocked = FindBlocks(path, pair);
  if (!blocked) return std::nullopt;
  const int64_t blocks = config_.block_diagonals ? config_.block_diagonals->blocks : 1;
  usable &= CheckFactors(path, pair, convolution, *blocked == BlockFactor::kB ? blocks : 1);
  if (!usable) return std::nullopt;
  const ModuleKind kind = pair.is_embedding ? ModuleKind::kEmbedding
                          : convolution     ? ModuleKind::kConv
                                            : ModuleKind::kLinear;
  PlannedPart part = StartPeftPair(path, kind, pair);
  if (!ExpandBlocks(*blocked, blocks, part, checks_) || !ScaleByPatterns(path, part.info) ||
      !AddVectors(pair, part)) {
    return std::nullopt;
  }
  return part;
}

// PEFT has block-diagonal factors in linear layers alone.
std::optional<BlockFactor> PairPlanner::FindBlocks(const std::string& path, const PeftPair& pair) {
  const SafetensorsEntry* a = pair.Get(TensorRole::kLoraA);
  const bool linear = !pair.is_embedding && !IsConvolutionPair(pair);
  if (!config_.block_diagonals || !linear || a == nullptr) return BlockFactor::kNone;
  return BlockFactorOf(*config_.block_diagonals, path, *a, checks_);
}

bool PairPlanner::CheckFactors(const std::string& path, const PeftPair& pair, bool convolution,
                               int64_t blocks_of_b) {
  const SafetensorsEntry* a = pair.Get(TensorRole::kLoraA);
  const SafetensorsEntry* b = pair.Get(TensorRole::kLoraB);
  bool usable = a != nullptr && b != nullptr;
  for (const auto& [tensor, shape] : {std::pair(a, kShapeA), std::pair(b, kShapeB)}) {
    if (tensor == nullptr) continue;
    usable &=
        convolution ? checks_.Values(*tensor, path, shape) : checks_.Matrix(*tensor, path, shape);
  }
  if (!usable || (convolution && !CheckGroups(path, *a, *b))) return false;
  return checks_.Ranks(*a, *b, path, blocks_of_b);
}

bool PairPlanner::CheckGroups(const std::string& path, const SafetensorsEntry& a,
                              const SafetensorsEntry& b) {
  if (b.shape[1] == a.shape[0] || a.shape[0] % b.shape[1] != 0) return true;
  checks_.Refuse(
      {.reason = Reason::kUnsupportedAdapter,
       .tensor = &b,
       .module = path,
       .what = fmt::format("belongs to a convolution in {} groups, which is not supported",
                           a.shape[0] / b.shape[1])});
  return false;
}

// Rank and scale by the config's patterns, which know the module as `key`.
bool PairPlanner::ScaleByPatterns(const std::string& key, ModuleInfo& info) {
  const auto ranks = patterns_.RanksOf(key);
  const auto alphas = patterns_.AlphasOf(key);
  if (ranks && std::find(ranks->begin(), ranks->end(), info.rank) == ranks->end()) {
    RefuseRank(key, info, ranks->front());
    return false;
  }
  if (!ranks || !alphas) return false;  // refused already
  if (ranks->front() != info.rank && order_lost_.empty()) order_lost_ = key;
  const bool ambiguous = std::count(alphas->begin(), alphas->end(), alphas->front()) !=
                         static_cast<ptrdiff_t>(alphas->size());
  if (ambiguous && ambiguous_alpha_.empty()) ambiguous_alpha_ = key;
  info.alpha = alphas->front();
  const auto r = static_cast<double>(info.rank);
  info.scale = info.alpha / (config_.use_rslora ? std::sqrt(r) : r);
  return true;
}

bool PairPlanner::AddVectors(const PeftPair& pair, PlannedPart& part) {
  ModuleInfo& info = part.info;
  const auto replaced = tensors_.replacements.find(info.path);
  const auto add = [&](const SafetensorsEntry* vector, TensorRole role, bool& has, DType& dtype) {
    if (vector == nullptr) return true;
    if (!checks_.Vector(*vector, info.path, info.out_features)) return false;
    part.Add(*vector, role);
    has = true;
    dtype = vector->dtype;
    return true;
  };
  const SafetensorsEntry* magnitude = pair.Get(TensorRole::kMagnitude);
  if (magnitude != nullptr) info.magnitude_shape = magnitude->shape;
  const SafetensorsEntry* bias =
      replaced == tensors_.replacements.end() ? nullptr : replaced->second.bias;
  return add(magnitude, TensorRole::kMagnitude, info.has_magnitude, info.magnitude_dtype) &&
         add(pair.Get(TensorRole::kLoraBias), TensorRole::kLoraBias, info.has_lora_bias,
             info.lora_bias_dtype) &&
         add(bias, TensorRole::kBias, info.replaces_bias, info.bias_dtype);
}

std::optional<PlannedPart> PairPlanner::PlanAdaLora(const std::string& path, const PeftPair& pair) {
  if (!checks_.Complete(pair, path, {TensorRole::kLoraA, TensorRole::kLoraB, TensorRole::kLoraE})) {
    return std::nullopt;
  }
  if (IsPrunedAway(path, pair)) return PlanWithoutRank(path, pair);
  if (!CheckFactors(path, pair, /*convolution=*/false)) return std::nullopt;
  const SafetensorsEntry& e = *pair.Get(TensorRole::kLoraE);
  PlannedPart part = StartPeftPair(path, ModuleKind::kLinear, pair);
  ModuleInfo& info = part.info;
  if (!checks_.Vector(e, path, info.rank) || !config_.r || !config_.lora_alpha ||
      !CheckKeptRank(path, info)) {
    return std::nullopt;
  }
  part.Add(e, TensorRole::kLoraE);
  info.lora_a_dtype = DType::kF32;  // E is folded in
  ScaleByInitialRank(info);
  if (!AddVectors(pair, part)) return std::nullopt;
  return part;
}

// AdaLoRA divides by the rank that it began with. REQUIRES: the config's values are known.
void PairPlanner::ScaleByInitialRank(ModuleInfo& info) const {
  info.alpha = *config_.lora_alpha;
  info.scale = info.alpha / (static_cast<double>(*config_.r) + kAdaLoraEpsilon);
}

// Training may leave a module without any rank: A [0, in], B [out, 0], E [0, 1].
bool PairPlanner::IsPrunedAway(const std::string& path, const PeftPair& pair) const {
  const auto kept = kept_ranks_.find(path);
  const Shape& a = pair.Get(TensorRole::kLoraA)->shape;
  const Shape& b = pair.Get(TensorRole::kLoraB)->shape;
  return kept != kept_ranks_.end() && kept->second == 0 && a.size() == 2 && a[0] == 0 && a[1] > 0 &&
         b.size() == 2 && b[0] > 0 && b[1] == 0;
}

std::optional<PlannedPart> PairPlanner::PlanWithoutRank(const std::string& path,
                                                        const PeftPair& pair) {
  PlannedPart part = StartPeftPair(path, ModuleKind::kLinear, pair);
  if (!config_.r || !config_.lora_alpha) return std::nullopt;  // refused already
  ScaleByInitialRank(part.info);
  if (!AddVectors(pair, part)) return std::nullopt;
  return part;
}

// The file holds what pruning left.
bool PairPlanner::CheckKeptRank(const std::string& path, const ModuleInfo& info) {
  if (!config_.kept_ranks) return false;  // refused already
  const auto kept = kept_ranks_.find(path);
  const int64_t rank = kept == kept_ranks_.end() ? *config_.r : kept->second;
  if (rank == info.rank) return true;
  RefuseRank(path, info, rank);
  return false;
}

void PairPlanner::RefuseRank(const std::string& path, const ModuleInfo& info, int64_t expected) {
  SafetensorsEntry named;
  named.name = info.lora_a_tensor;
  checks_.Refuse({.tensor = &named,
                  .module = path,
                  .what = "has another rank than the config says",
                  .expected = fmt::format("rank {}", expected),
                  .actual = fmt::format("rank {}", info.rank)});
}

bool PairPlanner::HasProjections() {
  if (has_projections_) return *has_projections_;
  has_projections_ = true;
  for (const auto& [tensor, name, shape] :
       {std::tuple(tensors_.vera_a, "vera_A", kShapeA), {tensors_.vera_b, "vera_B", kShapeB}}) {
    if (tensor == nullptr) {
      checks_.Refuse(
          {.what = fmt::format("holds no {}, the projection that all modules share", name)});
      has_projections_ = false;
    } else if (!checks_.Matrix(*tensor, "", shape)) {
      has_projections_ = false;
    }
  }
  if (*has_projections_) has_projections_ = checks_.Ranks(*tensors_.vera_a, *tensors_.vera_b, "");
  return *has_projections_;
}

std::optional<PlannedPart> PairPlanner::PlanVera(const std::string& path, const PeftPair& pair) {
  if (!checks_.Complete(pair, path, {TensorRole::kLambdaB, TensorRole::kLambdaD}) ||
      !HasProjections()) {
    return std::nullopt;
  }
  const SafetensorsEntry& a = *tensors_.vera_a;
  const SafetensorsEntry& b = *tensors_.vera_b;
  const SafetensorsEntry& lambda_b = *pair.Get(TensorRole::kLambdaB);
  const SafetensorsEntry& lambda_d = *pair.Get(TensorRole::kLambdaD);
  PlannedPart part;
  ModuleInfo& info = part.info;
  info.path = path;
  info.rank = a.shape[0];
  info.in_features = VeraInputs(path);
  info.out_features = ElementsOf(lambda_b);
  if (!checks_.Vector(lambda_d, path, info.rank) ||
      !checks_.Vector(lambda_b, path, info.out_features)) {
    return std::nullopt;
  }
  if (info.in_features > a.shape[1] || info.out_features > b.shape[0]) {
    checks_.Refuse({.tensor = info.in_features > a.shape[1] ? &a : &b,
                    .module = path,
                    .what = fmt::format("is too small for module {}", Quoted(path)),
                    .expected = fmt::format("at least {} inputs and {} outputs", info.in_features,
                                            info.out_features),
                    .actual = fmt::format("{} and {}", a.shape[1], b.shape[0])});
    return std::nullopt;
  }
  info.alpha = static_cast<double>(info.rank);  // the lambdas are all the scale there is
  info.scale = 1;
  info.lora_a_tensor = a.name;
  info.lora_b_tensor = b.name;
  part.Add(lambda_b, TensorRole::kLambdaB);
  part.Add(lambda_d, TensorRole::kLambdaD);
  if (!AddVectors(pair, part)) return std::nullopt;
  return part;
}

// The projection is as wide as the widest module, and the file does not say how wide each is.
int64_t PairPlanner::VeraInputs(const std::string& path) {
  const int64_t widest = tensors_.vera_a->shape[1];
  std::optional<Shape> shape;
  if (base_ != nullptr) shape = base_->shape_of(path + ".weight");
  if (shape && shape->size() == 2) return (*shape)[config_.fan_in_fan_out ? 0 : 1];
  if (!warned_of_width_) {
    problems_.Add(ConfigWarning(
        config_, "",
        fmt::format("{} does not say how many inputs each module has, {} is assumed for all: "
                    "base_checkpoint would tell",
                    checks_.file(), widest)));
    warned_of_width_ = true;
  }
  return widest;
}

std::optional<PlannedPart> PairPlanner::PlanParameter(const std::string& path, int base_layers,
                                                      const PeftPair& pair,
                                                      const std::vector<std::string>& parameters) {
  const auto count = static_cast<int>(parameters.size());
  if (base_layers >= count) {
    checks_.Refuse({.tensor = pair.Any(),
                    .module = path,
                    .what = fmt::format("belongs to a parameter of {} that the config does not "
                                        "target",
                                        Quoted(path))});
    return std::nullopt;
  }
  if (!checks_.Complete(pair, path, {TensorRole::kLoraA, TensorRole::kLoraB}) ||
      !CheckFactors(path, pair, /*convolution=*/false)) {
    return std::nullopt;
  }
  const std::string& parameter = parameters[count - 1 - base_layers];
  const std::string key = path + "." + parameter;
  // A router's weight is a linear layer like any other.
  const bool is_weight = parameter == "weight";
  PlannedPart part = StartPeftPair(is_weight ? path : key, ModuleKind::kLinear, pair);
  part.info.parameter = parameter;
  if (!is_weight && !MakeExperts(key, part)) return std::nullopt;
  if (!ScaleByPatterns(key, part.info)) return std::nullopt;
  if (is_weight && !AddVectors(pair, part)) return std::nullopt;
  return part;
}

bool PairPlanner::MakeExperts(const std::string& key, PlannedPart& part) {
  ModuleInfo& info = part.info;
  const auto ranks = patterns_.RanksOf(key);
  if (!ranks) return false;  // refused already
  const int64_t rank = ranks->front();
  if (info.rank % rank != 0) {
    SafetensorsEntry named;
    named.name = info.lora_a_tensor;
    checks_.Refuse({.tensor = &named,
                    .module = key,
                    .what = "does not hold a whole number of experts",
                    .expected = fmt::format("a multiple of rank {}", rank),
                    .actual = fmt::format("{} rows", info.rank)});
    return false;
  }
  info.kind = ModuleKind::kExperts;
  info.experts = info.rank / rank;
  info.rank = rank;
  const auto swapped =
      ExpertsAreSwapped({key, info.in_features, info.out_features}, config_.peft_version, base_);
  if (!swapped.ok()) {
    checks_.Refuse(swapped.status());
    return false;
  }
  part.swapped = *swapped;
  if (*swapped) {
    std::swap(info.in_features, info.out_features);
    std::swap(info.lora_a_dtype, info.lora_b_dtype);
  }
  return true;
}

// PEFT sorts the patterns when it saves, so that their order may not be the one of the training. A
// rank says its own truth, an alpha does not: where the ranks prove another order, an alpha that
// hangs on the order is a guess.
void PairPlanner::Finish() {
  if (!order_lost_.empty() && !ambiguous_alpha_.empty()) {
    checks_.Refuse({.module = ambiguous_alpha_,
                    .what = fmt::format(
                        "has ranks (module {}) that show that the patterns of the config are not "
                        "in their order of training, and the alpha of module {} depends on that "
                        "order",
                        Quoted(order_lost_), Quoted(ambiguous_alpha_))});
    return;
  }
  if (!order_lost_.empty()) {
    problems_.Add(ConfigWarning(
        config_, "rank_pattern",
        fmt::format("{}: the rank of module {} is not that of the first pattern that matches but "
                    "of a later one; tensors decide",
                    config_.file, Quoted(order_lost_))));
  }
  if (!ambiguous_alpha_.empty()) {
    problems_.Add(ConfigWarning(
        config_, "alpha_pattern",
        fmt::format("{}: module {} matches patterns with different alphas; the first in the file "
                    "is taken, as PEFT does",
                    config_.file, Quoted(ambiguous_alpha_))));
  }
  if (problems_.has_errors()) return;
  for (const std::string& name : patterns_.UnusedTargets()) {
    problems_.Add(ConfigWarning(
        config_, "target_modules",
        fmt::format("{}: no tensors for target module {}", config_.file, Quoted(name))));
  }
}

}  // namespace adapterd
