// One ApplyProjection, of a unary call or of a stream.
#ifndef ADAPTERD_SERVICE_PROJECTION_REQUEST_H_
#define ADAPTERD_SERVICE_PROJECTION_REQUEST_H_

#include <vector>

#include "absl/functional/any_invocable.h"
#include "adapterd/v1/projection_service.pb.h"
#include "service/data_request.h"
#include "service/projection_plan.h"
#include "service/projection_resolve.h"
#include "service/tensor_message.h"

namespace adapterd {

class ProjectionRequest final : public DataRequest {
 public:
  using Request = TensorMessage<v1::ApplyProjectionRequest>;
  using Response = TensorMessage<v1::ApplyProjectionResponse>;
  // Fills in the request, where it will be worked on.
  using Read = absl::AnyInvocable<absl::Status(Request&)>;
  // Called once, on the last thread that worked on it.
  using Done = absl::AnyInvocable<void(absl::StatusOr<Response>)>;

  ProjectionRequest(DataPlane& plane, absl::Time deadline, Read read, Done done)
      : DataRequest(plane, deadline), read_(std::move(read)), done_(std::move(done)) {}

 private:
  absl::StatusOr<Needs> Parse() override;
  absl::StatusOr<int64_t> Prepare(const std::vector<AdapterHandle>& handles) override;
  absl::Status Compute() override;
  void Answer(const absl::Status& status) override;

  Shape OutputShape(const ResolvedProjection& resolved) const;
  absl::StatusOr<int64_t> OutputBytes() const;
  absl::Status AddOutput(const ProjectionPlan::Module& module, const ResolvedProjection& resolved);

  Read read_;
  Done done_;
  absl::Duration parsing_;
  Request request_;
  ProjectionPlan plan_;  // views request_
  Response response_;
  std::vector<bool> used_;                    // of the plan's references
  std::vector<ResolvedProjection> resolved_;  // targets_ point into it
  std::vector<TensorWriter> writers_;         // of the response's outputs
  std::vector<ProjectionTarget> targets_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PROJECTION_REQUEST_H_
