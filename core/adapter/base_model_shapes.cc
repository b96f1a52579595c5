#include "core/adapter/base_model_shapes.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "core/adapter/module_index.h"
#include "core/base/quote.h"
#include "core/tensor/shape.h"

namespace adapterd {
namespace {

// transformers' names for them, in every architecture that has any.
constexpr std::string_view kConv1dTargets[] = {"c_attn", "q_attn", "c_proj", "c_fc"};

// GPT-2 with nn.Linear by the same names.
constexpr std::string_view kLinearGpt = "gpt_bigcode";

bool IsShape(std::span<const int64_t> shape, std::initializer_list<int64_t> dims) {
  return std::equal(shape.begin(), shape.end(), dims.begin(), dims.end());
}

bool HasConv1dName(std::string_view path) {
  return std::find(std::begin(kConv1dTargets), std::end(kConv1dTargets), TargetOf(path)) !=
         std::end(kConv1dTargets);
}

// One switch for all layers of an adapter, which PEFT takes back where the layer is an nn.Linear
// (lora/layer.py, dispatch_default): many configs set it for models that have nothing else. What is
// known of the architecture is finer; of another model only a layer with Conv1D's name may be one.
bool IsConv1d(const ModuleInfo& module, const BaseGeometry& geometry, bool fan_in_fan_out) {
  if (IsConv1dArchitecture(geometry)) return IsConv1dModule(module.path, geometry);
  const bool may_be = geometry.model_type.empty() ||
                      (HasConv1dName(module.path) && geometry.text_model_type != kLinearGpt);
  return fan_in_fan_out && may_be;
}

bool MayBeTransposed(const ModuleInfo& module, const BaseGeometry& geometry, bool fan_in_fan_out) {
  return geometry.model_type.empty() || fan_in_fan_out ||
         IsConv1d(module, geometry, fan_in_fan_out);
}

std::optional<BaseLayout> LayoutOfLinear(const ModuleInfo& module, std::span<const int64_t> shape,
                                         const BaseGeometry& geometry, bool fan_in_fan_out) {
  const bool out_in = IsShape(shape, {module.out_features, module.in_features});
  const bool in_out = IsShape(shape, {module.in_features, module.out_features});
  if (out_in && in_out) {
    return IsConv1d(module, geometry, fan_in_fan_out) ? BaseLayout::kInOut : BaseLayout::kOutIn;
  }
  if (out_in) return BaseLayout::kOutIn;
  if (in_out && MayBeTransposed(module, geometry, fan_in_fan_out)) return BaseLayout::kInOut;
  return std::nullopt;
}

std::optional<BaseLayout> LayoutOfExperts(const ModuleInfo& module, std::span<const int64_t> shape,
                                          const BaseGeometry& geometry) {
  const int64_t out = module.out_features;
  const int64_t in = module.in_features;
  if (module.experts == 1 && IsShape(shape, {out, in})) return BaseLayout::kOutIn;
  const bool out_in = IsShape(shape, {module.experts, out, in});
  const bool in_out = IsShape(shape, {module.experts, in, out});
  if (out_in && in_out) {
    return HasTransposedExperts(geometry) ? BaseLayout::kInOut : BaseLayout::kOutIn;
  }
  if (out_in) return BaseLayout::kOutIn;
  if (in_out) return BaseLayout::kInOut;
  return std::nullopt;
}

bool IsConvolution(const ModuleInfo& module, std::span<const int64_t> shape) {
  if (shape.size() < 3) return false;
  if (!IsShape(shape.first(2), {module.out_features, module.in_features})) return false;
  // Of a header that was checked: the product of all dimensions does not overflow.
  const auto elements = ElementCount(shape.subspan(2));
  return elements.ok() && *elements == module.kernel_elements;
}

}  // namespace

std::optional<BaseLayout> LayoutOfWeight(const ModuleInfo& module, std::span<const int64_t> shape,
                                         const BaseGeometry& geometry, bool fan_in_fan_out) {
  switch (module.kind) {
    case ModuleKind::kLinear:
      return LayoutOfLinear(module, shape, geometry, fan_in_fan_out);
    case ModuleKind::kExperts:
      return LayoutOfExperts(module, shape, geometry);
    case ModuleKind::kEmbedding:
      if (IsShape(shape, {module.in_features, module.out_features})) return BaseLayout::kInOut;
      return std::nullopt;
    case ModuleKind::kConv:
      if (IsConvolution(module, shape)) return BaseLayout::kOutIn;
      return std::nullopt;
    case ModuleKind::kReplacement:
      break;
  }
  return std::nullopt;
}

bool IsConv1dModule(std::string_view path, const BaseGeometry& geometry) {
  return IsConv1dArchitecture(geometry) && HasConv1dName(path);
}

std::string ExpectedShape(const ModuleInfo& module, const BaseGeometry& geometry,
                          bool fan_in_fan_out) {
  const int64_t out = module.out_features;
  const int64_t in = module.in_features;
  switch (module.kind) {
    case ModuleKind::kLinear:
      if (in == out || !MayBeTransposed(module, geometry, fan_in_fan_out)) break;
      return fmt::format("[{}, {}] or [{}, {}]", out, in, in, out);
    case ModuleKind::kExperts:
      if (in == out) return fmt::format("[{}, {}, {}]", module.experts, out, in);
      return fmt::format("[{}, {}, {}] or [{}, {}, {}]", module.experts, out, in, module.experts,
                         in, out);
    case ModuleKind::kEmbedding:
      return fmt::format("[{}, {}]", in, out);
    case ModuleKind::kConv:
      return fmt::format("[{}, {}, a kernel of {} places]", out, in, module.kernel_elements);
    case ModuleKind::kReplacement:
      return Printable(ShapeString(module.weight_shape));
  }
  return fmt::format("[{}, {}]", out, in);
}

}  // namespace adapterd
