// A Forward request with its base model and adapters at hand: what is to be computed.
#ifndef ADAPTERD_SERVICE_FORWARD_RESOLVE_H_
#define ADAPTERD_SERVICE_FORWARD_RESOLVE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "core/compute/base_product.h"
#include "core/registry/adapter_handle.h"
#include "service/forward_module.h"
#include "service/term_resolve.h"

namespace adapterd {

// What one adapter does to the module. Not movable once others point into it.
struct ForwardAdapter {
  std::optional<ResolvedTerm> term;  // nullopt: it brings no pair, or was merged
  const MergedAdapter* merged = nullptr;
  // What it brings in place of the base's.
  std::optional<StoredWeight> weight;
  std::vector<ReplacedRow> rows;  // `weight` views them
  const Tensor* bias = nullptr;
  // DoRA's, in F32; what `term->dora` views.
  std::vector<float> dora_bias;

  bool replaces() const { return weight.has_value() || bias != nullptr; }
};

// A DoRA adapter whose gains the computation has to know.
struct DoraNeed {
  size_t ref = 0;
  StoredWeight weight;  // the norms' own
};

// Immovable once filled: its parts view each other.
struct ResolvedForward {
  ForwardModule module;
  std::vector<std::optional<ForwardAdapter>> by_ref;  // nullopt: not targeted, skipped
  std::vector<BaseRun> runs;
  std::vector<ProjectionSegment> segments;
  std::vector<DoraNeed> dora;
  std::vector<bool> used;  // of the plan's references
  int64_t out_features = 0;
};

// `handles` has one entry for each of the plan's references, and outlives the result, as plan and
// base do. Errors of FindForwardModule and FindInAdapter. INVALID_FIELD: an adapter that replaces
// the module beside another such adapter, weighted, or where others are merged; DoRA beside other
// adapters or weighted. MERGED_REVISION: another revision or weight of an adapter than the merged
// one. SHAPE_MISMATCH, UNSUPPORTED_DTYPE, UNSUPPORTED_ADAPTER, MEMORY_BUDGET_EXCEEDED.
absl::Status ResolveForward(const ForwardPlan& plan, const HostedBase& base,
                            const std::vector<AdapterHandle>& handles, ResolvedForward& resolved);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_FORWARD_RESOLVE_H_
