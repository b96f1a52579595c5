// One Merge.
#ifndef ADAPTERD_SERVICE_MERGE_REQUEST_H_
#define ADAPTERD_SERVICE_MERGE_REQUEST_H_

#include <vector>

#include "absl/functional/any_invocable.h"
#include "adapterd/v1/merge_service.pb.h"
#include "service/data_request.h"
#include "service/merge_parts.h"
#include "service/merge_plan.h"
#include "service/tensor_message.h"

namespace adapterd {

// Merges in the memory that the weight came in, which then is the reply's.
class MergeRequest final : public DataRequest {
 public:
  using Request = TensorMessage<v1::MergeRequest>;
  using Response = TensorMessage<v1::MergeResponse>;
  // As ProjectionRequest.
  using Read = absl::AnyInvocable<absl::Status(Request&)>;
  using Done = absl::AnyInvocable<void(absl::StatusOr<Response>)>;

  MergeRequest(DataPlane& plane, absl::Time deadline, Read read, Done done)
      : DataRequest(plane, deadline), read_(std::move(read)), done_(std::move(done)) {}

 private:
  absl::StatusOr<Needs> Parse() override;
  absl::StatusOr<int64_t> Prepare(const std::vector<AdapterHandle>& handles) override;
  absl::Status Compute() override;
  void Answer(const absl::Status& status) override;

  absl::Status MergeBias();
  void KeepBias();

  Read read_;
  Done done_;
  Request request_;
  MergePlan plan_;          // views request_
  std::vector<bool> used_;  // of the plan's references
  std::vector<MergePart> parts_;
  WeightMatrix matrix_;
  Response response_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MERGE_REQUEST_H_
