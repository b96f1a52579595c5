// adapterd_merge.json: where a merged checkpoint comes from, and what rounding did to it.
#ifndef ADAPTERD_CORE_MERGE_CERTIFICATE_H_
#define ADAPTERD_CORE_MERGE_CERTIFICATE_H_

#include <string>
#include <string_view>
#include <vector>

#include "core/merge/checkpoint_plan.h"
#include "core/merge/tensor_merge.h"

namespace adapterd {

inline constexpr std::string_view kCertificateName = "adapterd_merge.json";

// SHA-256 over "adapterd-checkpoint-v1\n" and a line for each tensor, by name:
//   name TAB dtype TAB dims joined by x TAB SHA-256 of its bytes LF
std::string CheckpointDigest(const CheckpointPlan& plan,
                             const std::vector<TensorOutcome>& outcomes);

// Over all tensors that an adapter changed.
RoundingStats TotalStats(const CheckpointPlan& plan, const std::vector<TensorOutcome>& outcomes);

// The file's text. Depends on nothing but content: two equal merges have one certificate.
// docs/merging.md says what its fields mean.
std::string Certificate(const CheckpointMergeRequest& request, std::string_view source_fingerprint,
                        const CheckpointPlan& plan, const std::vector<TensorOutcome>& outcomes);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_MERGE_CERTIFICATE_H_
