// An ApplyProjection request, checked as far as it can be without its adapters.
#ifndef ADAPTERD_SERVICE_PROJECTION_PLAN_H_
#define ADAPTERD_SERVICE_PROJECTION_PLAN_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "adapterd/v1/projection_service.pb.h"
#include "service/input_plan.h"
#include "service/tensor_convert.h"
#include "service/tensor_message.h"

namespace adapterd {

inline constexpr int kMaxProjections = 256;

// Views the request, which must outlive it.
struct ProjectionPlan : InputPlan {
  struct Module {
    ModuleSelector selector;
    std::string field;              // "projections[0].module"
    std::string base_output_field;  // "projections[0].base_output"
    std::optional<FloatTensor> base_output;
    DType output_dtype = DType::kF32;
  };

  std::vector<Module> modules;
};

// INVALID_FIELD, SHAPE_MISMATCH, UNSUPPORTED_DTYPE, NOT_IMPLEMENTED.
absl::StatusOr<ProjectionPlan> PlanProjection(
    const TensorMessage<v1::ApplyProjectionRequest>& request);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PROJECTION_PLAN_H_
