#include "service/merge_parts.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

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

}  // namespace

std::optional<size_t> MergePart::ReplacedIndex() const {
  const std::vector<ModuleInfo>& modules = adapter->manifest().modules;
  if (info().kind == ModuleKind::kReplacement) return module.index;
  const size_t next = module.index + 1;
  if (next < modules.size() && modules[next].path == info().path) return next;
  return std::nullopt;
}

absl::Status About(const absl::Status& status, const MergePart& part) {
  return Annotate(Annotate(status, "adapter", part.ref->name), "module", part.info().path);
}

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

absl::StatusOr<std::vector<MergePart>> ResolveMerge(const MergePlan& plan,
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

absl::StatusOr<MergeInput> ReadMergeInput(const MergePlan& plan,
                                          const std::vector<MergePart>& parts,
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

}  // namespace adapterd
