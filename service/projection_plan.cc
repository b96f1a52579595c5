#include "service/projection_plan.h"

#include <fmt/format.h>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"

namespace adapterd {
namespace {

absl::Status Invalid(const std::string& field, const std::string& what) {
  return Error(Reason::kInvalidField, fmt::format("{}: {}", field, what)).With("field", field);
}

using Request = TensorMessage<v1::ApplyProjectionRequest>;

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
    module.base_output_field = prefix + ".base_output";
    const std::string& field = module.base_output_field;
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
  RETURN_IF_ERROR(ReadInputPlan(request, plan));
  if (message.projections().empty()) {
    return Invalid("projections", "expected at least one, found none");
  }
  if (message.projections_size() > kMaxProjections) {
    return Invalid("projections", fmt::format("expected at most {}, found {}", kMaxProjections,
                                              message.projections_size()));
  }
  for (int i = 0; i < message.projections_size(); ++i) {
    RETURN_IF_ERROR(ReadModule(request, i, plan));
  }
  return plan;
}

}  // namespace adapterd
