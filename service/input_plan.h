// The input of a request for projections and the adapters of its rows, checked as far as they can
// be without these adapters.
#ifndef ADAPTERD_SERVICE_INPUT_PLAN_H_
#define ADAPTERD_SERVICE_INPUT_PLAN_H_

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

// Views the request, which must outlive it.
struct InputPlan {
  struct Segment {
    int64_t rows = 0;
    std::vector<AdapterRefs::Use> uses;
  };

  std::variant<FloatTensor, IdTensor> input;
  Shape leading;  // the shape of the rows: the input's, without its last dimension unless it is ids
  int64_t rows = 0;
  int64_t in_features = 0;        // 0: the input is ids
  std::vector<Segment> segments;  // their rows add up to `rows`
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

// Reads what requests with rows and adapters have in common. `request` is an ApplyProjectionRequest
// or a ForwardRequest. INVALID_FIELD, SHAPE_MISMATCH, UNSUPPORTED_DTYPE.
template <typename Request>
absl::Status ReadInputPlan(const TensorMessage<Request>& request, InputPlan& plan);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_INPUT_PLAN_H_
