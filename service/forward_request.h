// One Forward.
#ifndef ADAPTERD_SERVICE_FORWARD_REQUEST_H_
#define ADAPTERD_SERVICE_FORWARD_REQUEST_H_

#include <memory>
#include <optional>
#include <vector>

#include "adapterd/v1/projection_service.pb.h"
#include "core/base_model/hosted_base.h"
#include "service/forward_plan.h"
#include "service/forward_resolve.h"
#include "service/message_request.h"

namespace adapterd {

class ForwardRequest final : public MessageRequest<v1::ForwardRequest, v1::ForwardResponse> {
 public:
  using MessageRequest::MessageRequest;

 private:
  absl::StatusOr<Needs> Parse() override;
  absl::StatusOr<int64_t> Prepare(const std::vector<AdapterHandle>& handles) override;
  absl::Status Compute() override;
  void DropBuffers() override;

  DType OutputType() const;
  absl::Status MakeOutput();
  // Gives every term of DoRA its gains.
  absl::Status FindGains();
  absl::Status Multiply();

  absl::Duration parsing_;
  ForwardPlan plan_;  // views the request
  std::shared_ptr<const HostedBase> base_;
  std::optional<ResolvedForward> resolved_;
  std::vector<Gains> gains_;            // of resolved_->dora, in order
  std::optional<TensorWriter> writer_;  // of the response's output
  PooledBuffer sums_;                   // unless the output is F32
  std::byte* base_output_ = nullptr;    // F32: sums_ or the output
  ProjectionTarget target_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_FORWARD_REQUEST_H_
