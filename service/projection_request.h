// One ApplyProjection, of a unary call or of a stream.
#ifndef ADAPTERD_SERVICE_PROJECTION_REQUEST_H_
#define ADAPTERD_SERVICE_PROJECTION_REQUEST_H_

#include <vector>

#include "adapterd/v1/projection_service.pb.h"
#include "service/message_request.h"
#include "service/projection_plan.h"
#include "service/projection_resolve.h"

namespace adapterd {

// Of the two products of every term; saturated.
double FlopsOf(const std::vector<ProjectionSegment>& segments);

class ProjectionRequest final
    : public MessageRequest<v1::ApplyProjectionRequest, v1::ApplyProjectionResponse> {
 public:
  using MessageRequest::MessageRequest;

 private:
  absl::StatusOr<Needs> Parse() override;
  absl::StatusOr<int64_t> Prepare(const std::vector<AdapterHandle>& handles) override;
  absl::Status Compute() override;
  void DropBuffers() override { writers_.clear(); }

  Shape OutputShape(const ResolvedProjection& resolved) const;
  absl::StatusOr<int64_t> OutputBytes() const;
  absl::Status AddOutput(const ProjectionPlan::Module& module, const ResolvedProjection& resolved);

  absl::Duration parsing_;
  ProjectionPlan plan_;                       // views the request
  std::vector<bool> used_;                    // of the plan's references
  std::vector<ResolvedProjection> resolved_;  // targets_ point into it
  std::vector<TensorWriter> writers_;         // of the response's outputs
  std::vector<ProjectionTarget> targets_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PROJECTION_REQUEST_H_
