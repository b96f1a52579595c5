#include "service/projection_plan.h"

#include <fmt/format.h>

#include "core/base/checked_math.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"

namespace adapterd {
namespace {

absl::Status Invalid(const std::string& field, const std::string& what) {
  return Error(Reason::kInvalidField, fmt::format("{}: {}", field, what)).With("field", field);
}

absl::Status CheckCount(const std::string& field, int64_t count, int64_t limit) {
  if (count <= limit) return absl::OkStatus();
  return Invalid(field, fmt::format("expected at most {}, found {}", limit, count));
}

using Request = TensorMessage<v1::ApplyProjectionRequest>;

absl::Status ReadActivations(const Request& request, ProjectionPlan& plan) {
  ASSIGN_OR_RETURN(FloatTensor input,
                   FloatTensor::Read(request.message.input(), request.payloads, "input"));
  const Shape& shape = input.shape();
  if (shape.empty()) {
    return Error(Reason::kShapeMismatch, "input: expected [..., in_features], found a scalar")
        .With("field", "input")
        .With("actual", ShapeString(shape));
  }
  plan.in_features = shape.back();
  plan.leading.assign(shape.begin(), shape.end() - 1);
  plan.input = std::move(input);
  return absl::OkStatus();
}

absl::Status ReadInput(const Request& request, ProjectionPlan& plan) {
  if (!request.message.has_input()) return Invalid("input", "missing");
  if (HoldsIntegers(request.message.input())) {
    ASSIGN_OR_RETURN(IdTensor ids,
                     IdTensor::Read(request.message.input(), request.payloads, "input"));
    plan.leading = ids.shape();
    plan.input = std::move(ids);
  } else {
    RETURN_IF_ERROR(ReadActivations(request, plan));
  }
  ASSIGN_OR_RETURN(plan.rows, ElementCount(plan.leading));
  return CheckCount("input rows", plan.rows, kMaxRows);
}

absl::Status ReadSegment(const v1::Segment& segment, const std::string& field, bool sole,
                         ProjectionPlan& plan) {
  if (segment.rows() < 0) return Invalid(field + ".rows", "negative");
  RETURN_IF_ERROR(CheckCount(field + ".adapters", segment.adapters_size(), kMaxAdaptersPerSegment));
  ProjectionPlan::Segment read;
  read.rows = sole && segment.rows() == 0 ? plan.rows : segment.rows();
  for (int i = 0; i < segment.adapters_size(); ++i) {
    ASSIGN_OR_RETURN(
        const AdapterRefs::Use use,
        plan.adapters.Add(segment.adapters(i), fmt::format("{}.adapters[{}]", field, i)));
    read.uses.push_back(use);
  }
  plan.segments.push_back(std::move(read));
  return absl::OkStatus();
}

absl::Status ReadSegments(const v1::ApplyProjectionRequest& request, ProjectionPlan& plan) {
  if (request.has_adapter() == (request.segments_size() > 0)) {
    return Invalid("adapter", request.has_adapter()
                                  ? "expected adapter or segments, found both"
                                  : "expected adapter or segments, found neither");
  }
  if (request.has_adapter()) {
    ASSIGN_OR_RETURN(const AdapterRefs::Use use, plan.adapters.Add(request.adapter(), "adapter"));
    plan.segments.push_back({plan.rows, {use}});
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(CheckCount("segments", request.segments_size(), kMaxSegments));
  int64_t sum = 0;
  for (int i = 0; i < request.segments_size(); ++i) {
    RETURN_IF_ERROR(ReadSegment(request.segments(i), fmt::format("segments[{}]", i),
                                request.segments_size() == 1, plan));
    const auto added = CheckedAdd(sum, plan.segments.back().rows);
    if (!added) return Invalid("segments", "the rows overflow");
    sum = *added;
  }
  if (sum == plan.rows) return absl::OkStatus();
  return Error(Reason::kInvalidField,
               fmt::format("segments: the rows add up to {}, but the input has {}", sum, plan.rows))
      .With("field", "segments")
      .With("expected", plan.rows)
      .With("actual", sum);
}

absl::Status CheckBaseShape(const FloatTensor& base, const std::string& field,
                            const ProjectionPlan& plan) {
  const Shape& shape = base.shape();
  const absl::StatusOr<int64_t> rows =
      shape.empty() ? 0 : ElementCount(std::span(shape.data(), shape.size() - 1));
  if (!shape.empty() && rows.ok() && *rows == plan.rows) return absl::OkStatus();
  return Error(Reason::kShapeMismatch,
               fmt::format("{}: expected [..., out_features] with the input's {} rows, found {}",
                           field, plan.rows, ShapeString(shape)))
      .With("field", field)
      .With("actual", ShapeString(shape));
}

absl::Status ReadModule(const Request& request, int i, ProjectionPlan& plan) {
  const v1::Projection& projection = request.message.projections(i);
  const std::string prefix = fmt::format("projections[{}]", i);
  ProjectionPlan::Module module;
  module.field = prefix + ".module";
  ASSIGN_OR_RETURN(module.selector, SelectorFromProto(projection.module(), module.field));
  module.output_dtype = plan.input_dtype();
  if (projection.has_base_output()) {
    const std::string field = prefix + ".base_output";
    ASSIGN_OR_RETURN(module.base_output,
                     FloatTensor::Read(projection.base_output(), request.payloads, field));
    RETURN_IF_ERROR(CheckBaseShape(*module.base_output, field, plan));
    module.output_dtype = module.base_output->dtype();
  }
  const v1::DataType output_dtype = request.message.output_dtype();
  if (output_dtype != v1::DATA_TYPE_UNSPECIFIED) {
    ASSIGN_OR_RETURN(module.output_dtype, FloatTypeFromProto(output_dtype, "output_dtype"));
  }
  plan.modules.push_back(std::move(module));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ProjectionPlan> PlanProjection(const Request& request) {
  const v1::ApplyProjectionRequest& message = request.message;
  ProjectionPlan plan;
  plan.skip_untargeted = message.skip_untargeted();
  plan.skip_disabled = message.skip_disabled();
  RETURN_IF_ERROR(ReadInput(request, plan));
  RETURN_IF_ERROR(ReadSegments(message, plan));
  if (message.projections().empty()) {
    return Invalid("projections", "expected at least one, found none");
  }
  RETURN_IF_ERROR(CheckCount("projections", message.projections_size(), kMaxProjections));
  for (int i = 0; i < message.projections_size(); ++i) {
    RETURN_IF_ERROR(ReadModule(request, i, plan));
  }
  return plan;
}

}  // namespace adapterd
