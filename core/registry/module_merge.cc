#include "core/registry/module_merge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/tensor/convert.h"

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

absl::Status InvalidPart(const MergePart& part, std::string_view what) {
  return About(Error(Reason::kInvalidField,
                     fmt::format("adapters: adapter \"{}\" {} module {}, which goes with weight 1 "
                                 "and no other adapter alone",
                                 part.name, what, part.info().path))
                   .With("field", "adapters"),
               part);
}

}  // namespace

absl::Status CheckAlone(const std::vector<MergePart>& parts) {
  for (const MergePart& part : parts) {
    if (parts.size() == 1 && part.weight == 1) continue;
    if (part.info().has_magnitude) return InvalidPart(part, "is DoRA on");
    if (part.ReplacedIndex() || part.info().replaces_bias) return InvalidPart(part, "replaces");
  }
  return absl::OkStatus();
}

std::optional<size_t> MergePart::ReplacedIndex() const {
  const std::vector<ModuleInfo>& modules = adapter->manifest().modules;
  if (info().kind == ModuleKind::kReplacement) return module;
  const size_t next = module + 1;
  if (next < modules.size() && modules[next].path == info().path) return next;
  return std::nullopt;
}

absl::Status About(const absl::Status& status, const MergePart& part) {
  return Annotate(Annotate(status, "adapter", part.name), "module", part.info().path);
}

absl::StatusOr<WeightMatrix> MatrixOf(const MergePart& part, const Shape& shape,
                                      WeightLayout layout) {
  const ModuleInfo& info = part.info();
  const bool embedding = info.kind == ModuleKind::kEmbedding;
  WeightMatrix matrix;
  matrix.layout = embedding ? WeightLayout::kInOut : layout;
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
      const Shape expected = {out_in ? part.out_features() : info.in_features,
                              out_in ? info.in_features : part.out_features()};
      fits = shape == expected;
    }
  }
  if (!fits) return About(ShapeError("weight", Expected(info, matrix.layout), shape), part);
  matrix.rows = shape[0];
  matrix.cols = 1;
  for (size_t i = 1; i < shape.size(); ++i) matrix.cols *= shape[i];
  return matrix;
}

absl::StatusOr<MergeInput> ReadMergeInput(const std::vector<MergePart>& parts, const Shape& shape,
                                          const WeightMatrix& matrix) {
  MergeInput input;
  input.options.layout = matrix.layout;
  for (const MergePart& part : parts) {
    if (const auto replaced = part.ReplacedIndex()) {
      const Tensor& weight = (*part.adapter)->extras(*replaced).weight;
      const ModuleInfo& info = *part.ReplacedInfo();
      if (!FitsReplacement(info, shape)) {
        return About(ShapeError("weight", Expected(info, matrix.layout), shape), part);
      }
      if (!info.weight_shape.empty()) {
        const int64_t rows = info.token_ids.empty() ? matrix.rows : info.weight_shape[0];
        input.options.replacement = {{weight.dtype(), rows, matrix.cols, weight.bytes().data()},
                                     info.token_ids};
      }
    }
    if (part.info().pairs() == 0) continue;
    input.factors.push_back((*part.adapter)->Factors(part.module, part.pair));
    const MatrixView b = AsMatrix(input.factors.back().lora_b);
    input.terms.push_back({AsMatrix(input.factors.back().lora_a),
                           b.Rows(part.first_output, part.out_features()),
                           part.weight * part.info().scale});
    if (part.info().has_magnitude) input.options.magnitude = part.extras().magnitude_f32.data();
  }
  return input;
}

absl::Status MergeBias(const std::vector<MergePart>& parts, DType dtype, const std::byte* stored,
                       bool allow_non_finite, std::span<std::byte> merged) {
  const auto size = static_cast<int64_t>(merged.size()) / FloatBytes(dtype);
  std::vector<float> before(size, 0.0f);
  if (stored != nullptr) ConvertToF32(dtype, stored, before.data(), size);
  std::vector<float> sums = before;
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
  ConvertFromF32(sums.data(), dtype, merged.data(), size);
  ConvertToF32(dtype, merged.data(), sums.data(), size);
  int64_t lost = 0;
  for (int64_t i = 0; i < size; ++i) {
    lost += std::isfinite(before[i]) && !std::isfinite(sums[i]) ? 1 : 0;
  }
  if (lost == 0 || allow_non_finite) return absl::OkStatus();
  return Error(Reason::kNonFiniteResult,
               fmt::format("the merge would make {} of {} elements of the bias infinite or NaN",
                           lost, size));
}

absl::Status ShapeError(const std::string& field, const std::string& expected,
                        const Shape& actual) {
  return Error(Reason::kShapeMismatch,
               fmt::format("{}: expected {}, found {}", field, expected, ShapeString(actual)))
      .With("field", field)
      .With("expected", expected)
      .With("actual", ShapeString(actual));
}

}  // namespace adapterd
