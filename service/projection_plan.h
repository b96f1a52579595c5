// An ApplyProjection request, checked as far as it can be without its adapters.
#ifndef ADAPTERD_SERVICE_PROJECTION_PLAN_H_
#define ADAPTERD_SERVICE_PROJECTION_PLAN_H_

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "adapterd/v1/projection_service.pb.h"
#include "core/compute/projection.h"
#include "service/adapter_refs.h"
#include "service/tensor_convert.h"
#include "service/tensor_message.h"

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

  std::variant<FloatTensor, IdTensor> input;
  Shape leading;  // the shape of the rows: the input's, without its last dimension unless it is ids
  int64_t rows = 0;
  int64_t in_features = 0;        // 0: the input is ids
  std::vector<Segment> segments;  // their rows add up to `rows`
  std::vector<Module> modules;
  AdapterRefs adapters;
  bool skip_untargeted = false;
  bool skip_disabled = false;

  const FloatTensor* floats() const { return std::get_if<FloatTensor>(&input); }
  const IdTensor* ids() const { return std::get_if<IdTensor>(&input); }
  // What pairs are packed for; of ids it does not matter.
  DType input_dtype() const { return floats() != nullptr ? floats()->dtype() : DType::kF32; }
  // The caller wants to read the reply.
  bool readable() const { return floats() != nullptr && floats()->readable(); }

  ProjectionInput Input() const {
    if (ids() != nullptr) return TokenIds(ids()->values());
    return MatrixView{floats()->dtype(), rows, in_features, floats()->data()};
  }
};

// INVALID_FIELD, SHAPE_MISMATCH, UNSUPPORTED_DTYPE, NOT_IMPLEMENTED.
absl::StatusOr<ProjectionPlan> PlanProjection(
    const TensorMessage<v1::ApplyProjectionRequest>& request);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PROJECTION_PLAN_H_
