// One Merge.
#ifndef ADAPTERD_SERVICE_MERGE_REQUEST_H_
#define ADAPTERD_SERVICE_MERGE_REQUEST_H_

#include <vector>

#include "adapterd/v1/merge_service.pb.h"
#include "service/merge_parts.h"
#include "service/merge_plan.h"
#include "service/message_request.h"

namespace adapterd {

// Merges in the memory that the weight came in, which then is the reply's.
class MergeRequest final : public MessageRequest<v1::MergeRequest, v1::MergeResponse> {
 public:
  using MessageRequest::MessageRequest;

 private:
  absl::StatusOr<Needs> Parse() override;
  absl::StatusOr<int64_t> Prepare(const std::vector<AdapterHandle>& handles) override;
  absl::Status Compute() override;

  absl::Status MergeBias();
  void KeepBias();

  MergePlan plan_;          // views the request
  std::vector<bool> used_;  // of the plan's references
  std::vector<MergePart> parts_;
  WeightMatrix matrix_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MERGE_REQUEST_H_
