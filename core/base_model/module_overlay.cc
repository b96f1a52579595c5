#include "core/base_model/module_overlay.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/registry/module_merge.h"
#include "core/tensor/convert.h"

namespace adapterd {
namespace {

// Rows of a quantised weight are dequantised in blocks of about this size.
constexpr int64_t kBlockBytes = 4 << 20;

// One call of MakeOverlay. `parts` views `adapters`.
class Overlay {
 public:
  Overlay(const HostedModule& module, const std::vector<MergedAdapter>& adapters,
          const MergeTools& tools, const Cancellation& cancellation)
      : module_(module), adapters_(adapters), tools_(tools), cancellation_(cancellation) {
    for (const MergedAdapter& adapter : adapters) {
      MergePart part;
      part.name = adapter.name;
      part.adapter = adapter.handle.get();
      part.module = adapter.adapter_module;
      part.weight = adapter.weight;
      parts_.push_back(part);
    }
    layout_ =
        adapters.front().layout == BaseLayout::kInOut ? WeightLayout::kInOut : WeightLayout::kOutIn;
  }

  absl::Status Check() const {
    RETURN_IF_ERROR(CheckAlone(parts_));
    RETURN_IF_ERROR(CheckLayouts());
    if (!ChangesBias() || module_.bias.bytes().empty()) return absl::OkStatus();
    const Shape expected = {parts_[0].out_features()};
    if (module_.bias.shape() == expected) return absl::OkStatus();
    return About(ShapeError("bias", ShapeString(expected), module_.bias.shape()), parts_[0]);
  }

  int64_t weight_bytes() const {
    return ChangesWeight() ? module_.rows * module_.cols * FloatBytes(module_.merged_dtype()) : 0;
  }
  int64_t bias_bytes() const {
    return ChangesBias() ? parts_[0].out_features() * FloatBytes(bias_dtype()) : 0;
  }

  absl::StatusOr<Tensor> Weight(RoundingStats& sums) const {
    if (!ChangesWeight()) return Tensor();
    AlignedBuffer buffer(static_cast<size_t>(weight_bytes()));
    const MutableMatrixView merged = {module_.merged_dtype(), module_.rows, module_.cols,
                                      buffer.data()};
    // Experts are weights of their own, one below the other.
    const bool experts = parts_[0].info().kind == ModuleKind::kExperts && module_.shape.size() == 3;
    const int64_t slices = experts ? module_.shape[0] : 1;
    const int64_t rows = module_.rows / slices;
    Shape shape = module_.shape;
    if (experts) shape.erase(shape.begin());
    for (int64_t slice = 0; slice < slices; ++slice) {
      RETURN_IF_ERROR(
          MergeSlice(slice, shape, slice * rows, merged.Rows(slice * rows, rows), sums));
    }
    return Tensor(module_.merged_dtype(), module_.shape, std::move(buffer));
  }

  absl::StatusOr<Tensor> Bias() const {
    if (!ChangesBias()) return Tensor();
    const auto stored = module_.bias.bytes();
    AlignedBuffer buffer(static_cast<size_t>(bias_bytes()));
    RETURN_IF_ERROR(MergeBias(parts_, bias_dtype(), stored.empty() ? nullptr : stored.data(),
                              /*allow_non_finite=*/false, buffer.span()));
    return Tensor(bias_dtype(), {parts_[0].out_features()}, std::move(buffer));
  }

 private:
  // A layer without a bias gets one like its weight.
  DType bias_dtype() const {
    return module_.bias.bytes().empty() ? module_.merged_dtype() : module_.bias.dtype();
  }
  bool ChangesBias() const {
    return std::any_of(parts_.begin(), parts_.end(),
                       [](const MergePart& part) { return part.ChangesBias(); });
  }
  bool ChangesWeight() const {
    return std::any_of(parts_.begin(), parts_.end(), [](const MergePart& part) {
      const ModuleInfo* replaced = part.ReplacedInfo();
      return part.info().pairs() > 0 || (replaced != nullptr && !replaced->weight_shape.empty());
    });
  }

  // A square weight fits both ways, and adapters may differ in which it is.
  absl::Status CheckLayouts() const {
    for (const MergedAdapter& other : adapters_) {
      if (other.layout == adapters_.front().layout) continue;
      return Error(Reason::kInvalidField,
                   fmt::format("adapters \"{}\" and \"{}\" take the weight of module {} for the "
                               "transposes of each other",
                               adapters_.front().name, other.name, module_.path))
          .With("field", "adapters")
          .With("adapter", other.name);
    }
    return absl::OkStatus();
  }

  // `merged` are the rows of the module from `first` on.
  absl::Status MergeSlice(int64_t pair, const Shape& shape, int64_t first,
                          const MutableMatrixView& merged, RoundingStats& sums) const {
    std::vector<MergePart> parts = parts_;
    for (MergePart& part : parts) part.pair = pair;
    WeightMatrix matrix;
    for (const MergePart& part : parts) {
      ASSIGN_OR_RETURN(matrix, MatrixOf(part, shape, layout_));
    }
    ASSIGN_OR_RETURN(const MergeInput input, ReadMergeInput(parts, shape, matrix));
    ASSIGN_OR_RETURN(
        WeightMerge merge,
        WeightMerge::Create(tools_.kernels, input.terms, input.options, merged.rows, merged.cols));
    if (merge.NeedsNorms()) {
      RETURN_IF_ERROR(ForEachBlock(first, merged.rows, [&](int64_t row, const MatrixView& weight) {
        return merge.AddNorms(tools_.workers, row, weight, cancellation_);
      }));
    }
    RETURN_IF_ERROR(ForEachBlock(first, merged.rows, [&](int64_t row, const MatrixView& weight) {
      return merge.Merge(tools_.workers, row, weight, merged.Rows(row, weight.rows), cancellation_);
    }));
    sums.Add(merge.sums());
    return absl::OkStatus();
  }

  // Calls `take` with all rows [first, first + rows) of the weight, counted from `first` on.
  template <typename Take>
  absl::Status ForEachBlock(int64_t first, int64_t rows, Take take) const {
    if (module_.nf4 == nullptr) return take(0, module_.stored().Rows(first, rows));
    const int64_t row_bytes = module_.cols * static_cast<int64_t>(sizeof(float));
    const int64_t block_rows = std::clamp<int64_t>(kBlockBytes / row_bytes, 1, rows);
    AlignedBuffer block(static_cast<size_t>(block_rows * row_bytes));
    for (int64_t row = 0; row < rows; row += block_rows) {
      const int64_t count = std::min(block_rows, rows - row);
      const MutableMatrixView values = {DType::kF32, count, module_.cols, block.data()};
      module_.nf4->DequantizeRows(first + row, values);
      RETURN_IF_ERROR(take(row, MatrixView{DType::kF32, count, module_.cols, block.data()}));
    }
    return absl::OkStatus();
  }

  const HostedModule& module_;
  const std::vector<MergedAdapter>& adapters_;
  const MergeTools& tools_;
  const Cancellation& cancellation_;
  std::vector<MergePart> parts_;
  WeightLayout layout_ = WeightLayout::kOutIn;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const MergedOverlay>> MakeOverlay(
    const HostedModule& module, std::vector<MergedAdapter> adapters, const MergeTools& tools,
    const Cancellation& cancellation, RoundingStats& sums) {
  const Overlay overlay(module, adapters, tools, cancellation);
  RETURN_IF_ERROR(Annotate(overlay.Check(), "module", module.path));
  ASSIGN_OR_RETURN(
      Reservation reservation,
      tools.budget.Reserve(overlay.weight_bytes() + overlay.bias_bytes(), MemoryKind::kBaseModels));
  absl::StatusOr<Tensor> weight = overlay.Weight(sums);
  if (!weight.ok()) return Annotate(weight.status(), "module", module.path);
  absl::StatusOr<Tensor> bias = overlay.Bias();
  if (!bias.ok()) return Annotate(bias.status(), "module", module.path);
  return std::make_shared<const MergedOverlay>(std::move(adapters), *std::move(weight),
                                               *std::move(bias), std::move(reservation));
}

}  // namespace adapterd
