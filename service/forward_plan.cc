#include "service/forward_plan.h"

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"

namespace adapterd {

absl::StatusOr<ForwardPlan> PlanForward(const TensorMessage<v1::ForwardRequest>& request) {
  const v1::ForwardRequest& message = request.message;
  ForwardPlan plan;
  if (message.base_model().empty()) {
    return Error(Reason::kInvalidField, "base_model: missing").With("field", "base_model");
  }
  plan.base_model = message.base_model();
  ASSIGN_OR_RETURN(plan.selector, SelectorFromProto(message.module(), "module"));
  RETURN_IF_ERROR(ReadInputPlan(request, plan));
  if (message.output_dtype() != v1::DATA_TYPE_UNSPECIFIED) {
    ASSIGN_OR_RETURN(plan.output_dtype, FloatTypeFromProto(message.output_dtype(), "output_dtype"));
  }
  return plan;
}

}  // namespace adapterd
