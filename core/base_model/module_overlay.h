// Computes what merging makes of one module.
#ifndef ADAPTERD_CORE_BASE_MODEL_MODULE_OVERLAY_H_
#define ADAPTERD_CORE_BASE_MODEL_MODULE_OVERLAY_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/base_model/hosted_base.h"
#include "core/compute/add_rounded.h"
#include "core/compute/kernels.h"

namespace adapterd {

// What a merge works with; outlives it.
struct MergeTools {
  const Kernels& kernels;
  ThreadPool& workers;
  MemoryBudget& budget;
};

// The module with `adapters` (ascending by name, at least one) merged into it:
//
//     weight = round(W + the F32 sum of their deltas, in this order)
//     bias   = round(bias, or the one that replaces it, + the F32 sum of theirs)
//
// as Merge does it with these adapters in this order; on a quantised weight W is its dequantised
// value and the result BF16. Memory is reserved before it is taken, and may evict adapters. `sums`
// are those of the weight. On the calling thread and idle workers.
//
// INVALID_FIELD: DoRA or a replacement beside another adapter, or weighted; adapters that take the
// weight for the transposes of each other. SHAPE_MISMATCH.
// NON_FINITE_RESULT. MEMORY_BUDGET_EXCEEDED. CANCELLED.
absl::StatusOr<std::shared_ptr<const MergedOverlay>> MakeOverlay(
    const HostedModule& module, std::vector<MergedAdapter> adapters, const MergeTools& tools,
    const Cancellation& cancellation, RoundingStats& sums);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_MODULE_OVERLAY_H_
