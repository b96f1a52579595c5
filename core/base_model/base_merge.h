// Adapters that are merged into a base model in memory, and taken out of it again.
#ifndef ADAPTERD_CORE_BASE_MODEL_BASE_MERGE_H_
#define ADAPTERD_CORE_BASE_MODEL_BASE_MERGE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base_model/hosted_base.h"
#include "core/base_model/module_overlay.h"
#include "core/compute/merge.h"

namespace adapterd {

struct BaseMergeRequest {
  struct Adapter {
    std::string name;
    double weight = 1;
    std::shared_ptr<const AdapterHandle> handle;  // never empty
  };
  std::vector<Adapter> adapters;     // at least one
  std::vector<std::string> modules;  // patterns; empty: all that each adapter targets
  bool skip_merged = false;
};

struct BaseMergeResult {
  MergeStats stats;          // of the weights that changed, with all that is merged into them now
  int64_t weight_bytes = 0;  // of those weights
};

struct BaseUnmergeRequest {
  struct Adapter {
    std::string name;
    std::string revision;  // that must be the merged one; empty: any
  };
  std::vector<Adapter> adapters;     // empty: all that are merged
  std::vector<std::string> modules;  // patterns; empty: all
  bool skip_unmerged = false;
};

// The original weights stay: for each module that changes, an overlay is computed from them and all
// adapters that are merged into it, in the order of their names, so that the result does not depend
// on the order of calls. All or nothing: overlays are put in their places together at the end, and
// those that they replace live until then, which the budget must have room for. Whoever holds a
// snapshot keeps what he has.
//
// REQUIRES: one change of a base at a time. Threads: the calling one, and idle workers.

// Errors change nothing. INVALID_FIELD: a pattern, an adapter that is named twice, DoRA or a
// replacement beside another adapter, or weighted, adapters that take a weight for the transposes
// of each other. MODULE_NOT_TARGETED: a pattern or an adapter
// without a module, or a module of an adapter that the base does not hold and no pattern leaves
// out. ALREADY_MERGED, unless it is to be skipped. MERGED_REVISION: another revision or weight of
// an adapter is merged elsewhere in the model. SHAPE_MISMATCH, NON_FINITE_RESULT,
// MEMORY_BUDGET_EXCEEDED, CANCELLED.
absl::StatusOr<BaseMergeResult> MergeIntoBase(const std::shared_ptr<HostedBase>& base,
                                              const BaseMergeRequest& request,
                                              const MergeTools& tools,
                                              const Cancellation& cancellation);

// A module without merged adapters is to the bit what it was. Errors change nothing. INVALID_FIELD:
// a pattern. MODULE_NOT_TARGETED: a pattern that no module of the base matches. NOT_MERGED: an
// adapter that is merged into no module, or into none that one of the patterns matches, or nothing
// is merged at all; unless that is to be skipped. MEMORY_BUDGET_EXCEEDED, CANCELLED.
absl::Status UnmergeFromBase(const std::shared_ptr<HostedBase>& base,
                             const BaseUnmergeRequest& request, const MergeTools& tools,
                             const Cancellation& cancellation);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_BASE_MERGE_H_
