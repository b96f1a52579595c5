#include "service/merge_run.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <deque>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// One adapter's part in the merge.
struct MergePart {
  ResolvedModule module;
  const AdapterRef* ref = nullptr;
  const AdapterHandle* adapter = nullptr;
  double weight = 1;  // of the request

  const ModuleInfo& info() const { return *module.info; }
  const ModuleExtras& extras() const { return (*adapter)->extras(module.index); }

  // The base weight that the adapter brings along: its module is one, or the next is.
  const ModuleInfo* ReplacedInfo() const {
    return ReplacedIndex() ? &adapter->manifest().modules[*ReplacedIndex()] : nullptr;
  }
  std::optional<size_t> ReplacedIndex() const {
    const std::vector<ModuleInfo>& modules = adapter->manifest().modules;
    if (info().kind == ModuleKind::kReplacement) return module.index;
    const size_t next = module.index + 1;
    if (next < modules.size() && modules[next].path == info().path) return next;
    return std::nullopt;
  }
};

absl::Status About(absl::Status status, const MergePart& part) {
  return Annotate(Annotate(std::move(status), "adapter", part.ref->name), "module",
                  part.info().path);
}

// A weight of any number of dimensions as a matrix.
struct WeightMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  WeightLayout layout = WeightLayout::kOutIn;
};

std::string Expected(const ModuleInfo& info, WeightLayout layout) {
  switch (info.kind) {
    case ModuleKind::kReplacement:
      return info.token_ids.empty() ? ShapeString(info.weight_shape)
                                    : fmt::format("[token ids, {}]", info.out_features);
    case ModuleKind::kConv:
      return fmt::format("[{}, {}, {}]", info.out_features, info.in_features,
                         fmt::join(info.kernel.begin(), info.kernel.end(), ", "));
    default:
      return layout == WeightLayout::kOutIn
                 ? ShapeString(Shape{info.out_features, info.in_features})
                 : ShapeString(Shape{info.in_features, info.out_features});
  }
}

bool FitsReplacement(const ModuleInfo& info, const Shape& shape) {
  if (info.weight_shape.empty()) return true;  // only the bias is replaced
  if (info.token_ids.empty()) return shape == info.weight_shape;
  if (shape.size() != 2 || shape[1] != info.out_features) return false;
  for (const int64_t id : info.token_ids) {
    if (id >= shape[0]) return false;
  }
  return true;
}

// Where the kernel is one element, a linear layer's weight fits too.
bool FitsConvolution(const ModuleInfo& info, const Shape& shape) {
  Shape expected = {info.out_features, info.in_features};
  if (info.kernel_elements == 1 && shape == expected) return true;
  expected.insert(expected.end(), info.kernel.begin(), info.kernel.end());
  return shape == expected;
}

// The weight as the module's matrix, in the base model's own layout: that of embeddings and
// convolutions is fixed, linear layers have the request's.
absl::StatusOr<WeightMatrix> ReadMatrix(const MergePlan& plan, const MergePart& part) {
  const ModuleInfo& info = part.info();
  const Shape& shape = plan.weight.shape();
  const bool embedding = info.kind == ModuleKind::kEmbedding;
  WeightMatrix matrix;
  matrix.layout = embedding ? WeightLayout::kInOut : plan.layout;
  bool fits = false;
  switch (info.kind) {
    case ModuleKind::kReplacement:
      fits = FitsReplacement(info, shape);
      break;
    case ModuleKind::kConv:
      matrix.layout = WeightLayout::kOutIn;
      fits = FitsConvolution(info, shape);
      break;
    default: {
      const bool out_in = matrix.layout == WeightLayout::kOutIn;
      const Shape expected = {out_in ? info.out_features : info.in_features,
                              out_in ? info.in_features : info.out_features};
      fits = shape == expected;
    }
  }
  if (!fits) return About(ShapeError("weight", Expected(info, matrix.layout), shape), part);
  matrix.rows = shape[0];
  matrix.cols = 1;
  for (size_t i = 1; i < shape.size(); ++i) matrix.cols *= shape[i];
  return matrix;
}

absl::Status InvalidPart(const MergePart& part, const std::string& what) {
  return About(Error(Reason::kInvalidField,
                     fmt::format("adapters: adapter \"{}\" {} module {}, which goes with weight 1 "
                                 "and no other adapter alone",
                                 part.ref->name, what, part.info().path))
                   .With("field", "adapters"),
               part);
}

// What is no sum of deltas cannot be weighted or added to.
absl::Status CheckAlone(const std::vector<MergePart>& parts) {
  for (const MergePart& part : parts) {
    if (parts.size() == 1 && part.weight == 1) continue;
    if (part.info().has_magnitude) return InvalidPart(part, "is DoRA on");
    if (part.ReplacedIndex() || part.info().replaces_bias) return InvalidPart(part, "replaces");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MergePart>> Resolve(const MergePlan& plan,
                                               const std::vector<AdapterHandle>& handles,
                                               std::vector<bool>& used) {
  std::vector<MergePart> parts;
  for (const AdapterRefs::Use& use : plan.uses) {
    const AdapterRef& ref = plan.adapters.refs()[use.ref];
    ASSIGN_OR_RETURN(auto module, ResolveModule(handles[use.ref], ref, plan.selector, "module",
                                                plan.skip_untargeted));
    if (!module) continue;
    used[use.ref] = true;
    parts.push_back({*module, &ref, &handles[use.ref], use.weight});
  }
  RETURN_IF_ERROR(CheckAlone(parts));
  return parts;
}

// Everything that MergeWeight reads, alive until it is done.
struct MergeInput {
  std::deque<PairFactors> factors;
  std::vector<MergeTerm> terms;
  MergeOptions options;
};

absl::StatusOr<MergeInput> ReadInput(const MergePlan& plan, const std::vector<MergePart>& parts,
                                     const WeightMatrix& matrix) {
  MergeInput input;
  input.options.layout = matrix.layout;
  input.options.allow_non_finite = plan.allow_non_finite;
  for (const MergePart& part : parts) {
    if (const auto replaced = part.ReplacedIndex()) {
      const Tensor& weight = (*part.adapter)->extras(*replaced).weight;
      const ModuleInfo& info = *part.ReplacedInfo();
      if (!FitsReplacement(info, plan.weight.shape())) {
        return About(ShapeError("weight", Expected(info, matrix.layout), plan.weight.shape()),
                     part);
      }
      if (!info.weight_shape.empty()) {
        const int64_t rows = info.token_ids.empty() ? matrix.rows : info.weight_shape[0];
        input.options.replacement = {{weight.dtype(), rows, matrix.cols, weight.bytes().data()},
                                     info.token_ids};
      }
    }
    if (part.info().pairs() == 0) continue;
    input.factors.push_back((*part.adapter)->Factors(part.module.index, part.module.pair));
    input.terms.push_back({AsMatrix(input.factors.back().lora_a),
                           AsMatrix(input.factors.back().lora_b), part.weight * part.info().scale});
    if (part.info().has_magnitude) input.options.magnitude = part.extras().magnitude_f32.data();
  }
  return input;
}

bool ChangesBias(const MergePart& part) {
  return part.info().replaces_bias || part.info().has_lora_bias;
}

// The layer's bias with what the adapters do to it: summed in F32, rounded once. Without one in the
// request the layer has none, which adds like zeros.
absl::Status MergeBias(const MergePlan& plan, const std::vector<MergePart>& parts,
                       const v1::MergeRequest& request, v1::MergeResponse& response) {
  const int64_t size = parts.empty() ? 0 : parts[0].info().out_features;
  bool changed = false;
  for (const MergePart& part : parts) changed |= ChangesBias(part);
  if (plan.bias && !parts.empty() && plan.bias->shape()[0] != size) {
    return About(ShapeError("bias", fmt::format("[{}]", size), plan.bias->shape()), parts[0]);
  }
  if (!changed) {
    if (plan.bias) *response.mutable_bias() = request.bias();
    return absl::OkStatus();
  }
  std::vector<float> sums(size, 0.0f);
  const DType dtype = plan.bias ? plan.bias->dtype() : plan.weight.dtype();
  if (plan.bias) ConvertToF32(dtype, plan.bias->data(), sums.data(), size);
  for (const MergePart& part : parts) {
    const ModuleExtras& extras = part.extras();
    if (part.info().replaces_bias) {
      ConvertToF32(extras.bias.dtype(), extras.bias.bytes().data(), sums.data(), size);
    }
    if (!part.info().has_lora_bias) continue;
    const double factor = part.weight * part.info().scale;
    for (int64_t i = 0; i < size; ++i) {
      sums[i] += static_cast<float>(factor * extras.lora_bias_f32[i]);
    }
  }
  TensorWriter writer(*response.mutable_bias(), dtype, {size},
                      plan.bias ? plan.bias->readable() : plan.weight.readable());
  ConvertFromF32(sums.data(), dtype, writer.data(), size);
  writer.Finish();
  return absl::OkStatus();
}

void FillStats(const MergeStats& stats, v1::MergeStats& out) {
  out.set_max_abs_delta(stats.max_abs_delta);
  out.set_max_abs_rounding_error(stats.max_abs_rounding_error);
  out.set_relative_rounding_error(stats.relative_rounding_error);
  out.set_zeroed_elements(stats.zeroed_elements);
  out.set_non_finite_elements(stats.non_finite_elements);
}

}  // namespace

absl::Status RunMerge(DataPlane& plane, const RpcCall& call, const MergePlan& plan,
                      const v1::MergeRequest& request, const std::vector<AdapterHandle>& handles,
                      v1::MergeResponse& response) {
  std::vector<bool> used(handles.size(), false);
  ASSIGN_OR_RETURN(const std::vector<MergePart> parts, Resolve(plan, handles, used));
  WeightMatrix matrix;
  ASSIGN_OR_RETURN(const int64_t elements, ElementCount(plan.weight.shape()));
  matrix.rows = 1;  // what nobody targets stays as it is, whatever its shape
  matrix.cols = elements;
  for (const MergePart& part : parts) {
    ASSIGN_OR_RETURN(matrix, ReadMatrix(plan, part));
  }
  ASSIGN_OR_RETURN(const MergeInput input, ReadInput(plan, parts, matrix));
  RETURN_IF_ERROR(MergeBias(plan, parts, request, response));
  TensorWriter writer(*response.mutable_weight(), plan.weight.dtype(), plan.weight.shape(),
                      plan.weight.readable());
  const MatrixView weight = {plan.weight.dtype(), matrix.rows, matrix.cols, plan.weight.data()};
  const absl::Time start = absl::Now();
  absl::StatusOr<MergeStats> stats =
      MergeWeight(plane.kernels, plane.workers, weight, input.terms, input.options,
                  {weight.dtype, weight.rows, weight.cols, writer.data()}, call.cancellation());
  if (!stats.ok()) return stats.status();
  plane.environment.metrics.Merge(absl::Now() - start, weight.bytes());
  writer.Finish();
  FillStats(*stats, *response.mutable_stats());
  AddUses(plan.adapters.refs(), handles, used, *response.mutable_adapters());
  return absl::OkStatus();
}

}  // namespace adapterd
