// A Forward request, checked as far as it can be without its base model and adapters.
#ifndef ADAPTERD_SERVICE_FORWARD_PLAN_H_
#define ADAPTERD_SERVICE_FORWARD_PLAN_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "adapterd/v1/projection_service.pb.h"
#include "service/input_plan.h"

namespace adapterd {

// Views the request, which must outlive it.
struct ForwardPlan : InputPlan {
  std::string base_model;
  ModuleSelector selector;
  std::optional<DType> output_dtype;
};

// INVALID_FIELD, SHAPE_MISMATCH, UNSUPPORTED_DTYPE.
absl::StatusOr<ForwardPlan> PlanForward(const TensorMessage<v1::ForwardRequest>& request);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_FORWARD_PLAN_H_
