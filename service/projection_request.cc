#include "service/projection_request.h"

#include <algorithm>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {

double FlopsOf(const std::vector<ProjectionSegment>& segments) {
  double flops = 0;
  for (const ProjectionSegment& segment : segments) {
    for (const ProjectionTerm& term : segment.terms) {
      const PairShape& shape = term.pair->shape();
      const int64_t in_features = term.pair->is_embedding() ? 0 : shape.in_features;
      flops += 2.0 * static_cast<double>(segment.rows) * static_cast<double>(shape.rank) *
               static_cast<double>(in_features + shape.out_features);
    }
  }
  return flops;
}

absl::StatusOr<DataRequest::Needs> ProjectionRequest::Parse() {
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(ReadRequest());
  ASSIGN_OR_RETURN(plan_, PlanProjection(request()));
  parsing_ = absl::Now() - start;
  return Needs{plan_.adapters.refs(), plan_.skip_disabled};
}

absl::StatusOr<int64_t> ProjectionRequest::Prepare(const std::vector<AdapterHandle>& handles) {
  const absl::Time start = absl::Now();
  resolved_.reserve(plan_.modules.size());
  for (const ProjectionPlan::Module& module : plan_.modules) {
    ASSIGN_OR_RETURN(resolved_.emplace_back(), ResolveProjection(plan_, module, handles));
  }
  ASSIGN_OR_RETURN(const int64_t output_bytes, OutputBytes());
  RETURN_IF_ERROR(plane().environment.CheckMessageSize("reply", output_bytes));
  RETURN_IF_ERROR(Grow(output_bytes));
  used_.assign(handles.size(), false);
  double flops = 0;
  for (size_t i = 0; i < resolved_.size(); ++i) {
    RETURN_IF_ERROR(AddOutput(plan_.modules[i], resolved_[i]));
    flops += FlopsOf(targets_.back().segments);
  }
  plane().environment.metrics.Apply(ApplyStage::kParse, parsing_ + (absl::Now() - start));
  constexpr double kMost = 1e18;
  return static_cast<int64_t>(std::min(flops, kMost));
}

Shape ProjectionRequest::OutputShape(const ResolvedProjection& resolved) const {
  Shape shape = plan_.leading;
  shape.push_back(resolved.out_features.value_or(0));
  return shape;
}

absl::StatusOr<int64_t> ProjectionRequest::OutputBytes() const {
  int64_t total = 0;
  for (size_t i = 0; i < resolved_.size(); ++i) {
    // Readable replies hold floats, whatever the dtype.
    const DType dtype = plan_.readable() ? DType::kF32 : plan_.modules[i].output_dtype;
    ASSIGN_OR_RETURN(const int64_t bytes, ByteCount(dtype, OutputShape(resolved_[i])));
    const auto sum = CheckedAdd(total, bytes);
    if (!sum) return Error(Reason::kShapeMismatch, "the size of the outputs overflows");
    total = *sum;
  }
  return total;
}

absl::Status ProjectionRequest::AddOutput(const ProjectionPlan::Module& module,
                                          const ResolvedProjection& resolved) {
  v1::ProjectionOutput& output = *response().message.add_outputs();
  int32_t applied = 0;
  ProjectionTarget& target = targets_.emplace_back();
  ASSIGN_OR_RETURN(target.segments, ResolveSegments(plan_, module.field, resolved, used_, applied));
  output.set_applied(applied);
  output.set_path(resolved.path);
  writers_.emplace_back(*output.mutable_output(), module.output_dtype, OutputShape(resolved),
                        plan_.readable(), plane().buffers);
  const int64_t width = resolved.out_features.value_or(0);
  target.output = {module.output_dtype, plan_.rows, width, writers_.back().data()};
  if (module.base_output) {
    target.base_output =
        MatrixView{module.base_output->dtype(), plan_.rows, width, module.base_output->data()};
  }
  return absl::OkStatus();
}

absl::Status ProjectionRequest::Compute() {
  Metrics& metrics = plane().environment.metrics;
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(
      ApplyProjection(plane().kernels, plane().workers, plan_.Input(), targets_, cancellation()));
  const absl::Time computed = absl::Now();
  metrics.Apply(ApplyStage::kQueue, queued());
  metrics.Apply(ApplyStage::kCompute, computed - start);
  for (TensorWriter& writer : writers_) writer.Finish(response().payloads);
  AddUses(plan_.adapters.refs(), handles(), used_, *response().message.mutable_adapters());
  metrics.ApplyRows(plan_.rows);
  metrics.Apply(ApplyStage::kSerialize, absl::Now() - computed);
  return absl::OkStatus();
}

}  // namespace adapterd
