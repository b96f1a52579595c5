// Whether a base weight has the shape that an adapter's module needs.
#ifndef ADAPTERD_CORE_ADAPTER_BASE_MODEL_SHAPES_H_
#define ADAPTERD_CORE_ADAPTER_BASE_MODEL_SHAPES_H_

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/adapter/adapter.h"
#include "core/adapter/base_model_geometry.h"

namespace adapterd {

// How the features of a base weight lie: in its last two dimensions, of a convolution in the first.
enum class BaseLayout {
  kOutIn,  // [out_features, in_features], as nn.Linear
  kInOut,  // [in_features, out_features], as embeddings and GPT-2's Conv1D
};

// The layout of a weight of `shape` that a pair of `module` acts on; nullopt when it does not fit:
//   kLinear     [out, in], or [in, out] when the adapter's config sets fan_in_fan_out, when the
//               architecture has Conv1D there, or when nothing is known of it. Of any other model,
//               [in, out] is another layer's weight. Square: Conv1D by the same two signs.
//   kEmbedding  [in, out]
//   kConv       [out, in, kernel...], the kernel's places by their product
//   kExperts    [experts, out, in] or [experts, in, out]; square: as the architecture has it. One
//               expert may be a plain [out, in].
// REQUIRES: not kReplacement.
std::optional<BaseLayout> LayoutOfWeight(const ModuleInfo& module, std::span<const int64_t> shape,
                                         const BaseGeometry& geometry, bool fan_in_fan_out);

// True when the linear layer at `path` is one of transformers' Conv1D, whose weights are kInOut.
bool IsConv1dModule(std::string_view path, const BaseGeometry& geometry);

// The shapes that LayoutOfWeight takes, for messages: "[64, 192] or [192, 64]".
std::string ExpectedShape(const ModuleInfo& module, const BaseGeometry& geometry,
                          bool fan_in_fan_out);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_BASE_MODEL_SHAPES_H_
