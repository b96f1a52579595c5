#include "service/merge_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "core/base/status_macros.h"
#include "core/tensor/convert.h"
#include "service/merge_stats.h"

namespace adapterd {

absl::StatusOr<DataRequest::Needs> MergeRequest::Parse() {
  RETURN_IF_ERROR(ReadRequest());
  ASSIGN_OR_RETURN(plan_, PlanMerge(request()));
  return Needs{plan_.adapters.refs()};
}

absl::StatusOr<int64_t> MergeRequest::Prepare(const std::vector<AdapterHandle>& handles) {
  used_.assign(handles.size(), false);
  ASSIGN_OR_RETURN(parts_, ResolveMerge(plan_.adapters, plan_.uses, plan_.selector,
                                        plan_.skip_untargeted, handles, used_));
  ASSIGN_OR_RETURN(const int64_t elements, ElementCount(plan_.weight.shape()));
  matrix_.rows = 1;  // what nobody targets stays as it is, whatever its shape
  matrix_.cols = elements;
  for (const MergePart& part : parts_) {
    ASSIGN_OR_RETURN(matrix_, MatrixOf(part, plan_.weight.shape(), plan_.layout));
  }
  return std::numeric_limits<int64_t>::max();  // a weight is never a short request
}

// The layer's bias with what the adapters do to it: summed in F32, rounded once. Without one in the
// request the layer has none, which adds like zeros.
absl::Status MergeRequest::MergeBias() {
  const int64_t size = parts_.empty() ? 0 : parts_[0].info().out_features;
  bool changed = false;
  for (const MergePart& part : parts_) changed |= part.ChangesBias();
  if (plan_.bias && !parts_.empty() && plan_.bias->shape()[0] != size) {
    return About(ShapeError("bias", fmt::format("[{}]", size), plan_.bias->shape()), parts_[0]);
  }
  if (!changed) {
    KeepBias();
    return absl::OkStatus();
  }
  const DType dtype = plan_.bias ? plan_.bias->dtype() : plan_.weight.dtype();
  TensorWriter writer(*response().message.mutable_bias(), dtype, {size},
                      plan_.bias ? plan_.bias->readable() : plan_.weight.readable(),
                      plane().buffers);
  const auto bytes = static_cast<size_t>(size * FloatBytes(dtype));
  RETURN_IF_ERROR(adapterd::MergeBias(parts_, dtype, plan_.bias ? plan_.bias->data() : nullptr,
                                      plan_.allow_non_finite, {writer.data(), bytes}));
  writer.Finish(response().payloads);
  return absl::OkStatus();
}

void MergeRequest::KeepBias() {
  if (!plan_.bias) return;
  const size_t bytes =
      static_cast<size_t>(plan_.bias->shape()[0]) * FloatBytes(plan_.bias->dtype());
  const std::string& data = request().message.bias().data();
  PooledBuffer memory =
      data.empty() ? plane().buffers.Take(bytes) : request().payloads.Release(data);
  if (data.empty()) std::copy_n(plan_.bias->data(), bytes, memory.data());
  TensorWriter(*response().message.mutable_bias(), plan_.bias->dtype(), plan_.bias->shape(),
               plan_.bias->readable(), std::move(memory))
      .Finish(response().payloads);
}

absl::Status MergeRequest::Compute() {
  ASSIGN_OR_RETURN(MergeInput input, ReadMergeInput(parts_, plan_.weight.shape(), matrix_));
  input.options.allow_non_finite = plan_.allow_non_finite;
  RETURN_IF_ERROR(MergeBias());
  const DType dtype = plan_.weight.dtype();
  const MatrixView weight = {dtype, matrix_.rows, matrix_.cols, plan_.weight.data()};
  const std::string& data = request().message.weight().data();
  PooledBuffer memory = data.empty() ? plane().buffers.Take(static_cast<size_t>(weight.bytes()))
                                     : request().payloads.Release(data);
  TensorWriter writer(*response().message.mutable_weight(), dtype, plan_.weight.shape(),
                      plan_.weight.readable(), std::move(memory));
  const absl::Time start = absl::Now();
  const absl::StatusOr<MergeStats> stats =
      MergeWeight(plane().kernels, plane().workers, weight, input.terms, input.options,
                  {dtype, weight.rows, weight.cols, writer.data()}, cancellation());
  if (!stats.ok()) return AboutMerge(stats.status(), plan_.adapters, plan_.selector);
  plane().environment.metrics.Merge(absl::Now() - start, weight.bytes());
  writer.Finish(response().payloads);
  FillStats(*stats, *response().message.mutable_stats());
  AddUses(plan_.adapters.refs(), handles(), used_, *response().message.mutable_adapters());
  return absl::OkStatus();
}

}  // namespace adapterd
