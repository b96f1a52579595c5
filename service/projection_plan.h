// An ApplyProjection request, checked as far as it can be without its adapters.
#ifndef ADAPTERD_SERVICE_PROJECTION_PLAN_H_
#define ADAPTERD_SERVICE_PROJECTION_PLAN_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "adapterd/v1/projection_service.pb.h"
#include "service/adapter_refs.h"
#include "service/tensor_convert.h"

namespace adapterd {

// What one request may ask for; GetServerInfo tells clients.
inline constexpr int64_t kMaxRows = int64_t{1} << 20;
inline constexpr int kMaxSegments = 1024;
inline constexpr int kMaxAdaptersPerSegment = 16;
inline constexpr int kMaxProjections = 256;

// Views the request, which must outlive it.
struct ProjectionPlan {
  struct Segment {
    int64_t rows = 0;
    std::vector<AdapterRefs::Use> uses;
  };
  struct Module {
    ModuleSelector selector;
    std::string field;  // "projections[0].module"
    std::optional<FloatTensor> base_output;
    DType output_dtype = DType::kF32;
  };

  FloatTensor input;
  Shape leading;  // the input's shape without its last dimension
  int64_t rows = 0;
  int64_t in_features = 0;
  std::vector<Segment> segments;  // their rows add up to `rows`
  std::vector<Module> modules;
  AdapterRefs adapters;
  bool skip_untargeted = false;

  MatrixView InputMatrix() const { return {input.dtype(), rows, in_features, input.data()}; }
};

// INVALID_FIELD, SHAPE_MISMATCH, UNSUPPORTED_DTYPE, NOT_IMPLEMENTED.
absl::StatusOr<ProjectionPlan> PlanProjection(const v1::ApplyProjectionRequest& request);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PROJECTION_PLAN_H_
