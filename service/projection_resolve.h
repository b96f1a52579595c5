// The modules of an ApplyProjection request in the adapters that it names.
#ifndef ADAPTERD_SERVICE_PROJECTION_RESOLVE_H_
#define ADAPTERD_SERVICE_PROJECTION_RESOLVE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/compute/projection.h"
#include "core/registry/adapter_handle.h"
#include "service/projection_plan.h"
#include "service/term_resolve.h"

namespace adapterd {

// One module of the request in all of them.
struct ResolvedProjection {
  std::vector<std::optional<ResolvedTerm>> by_ref;  // nullopt: not targeted, skipped
  std::string path;                                 // of the first that targets it
  std::optional<int64_t> out_features;              // nullopt: nothing tells
};

// `handles` has one entry for each of the plan's references, and outlives the result. Packs what
// was not needed in this dtype before. MODULE_NOT_TARGETED, INVALID_FIELD, SHAPE_MISMATCH,
// UNSUPPORTED_DTYPE, UNSUPPORTED_ADAPTER, BASE_REQUIRED, MEMORY_BUDGET_EXCEEDED.
absl::StatusOr<ResolvedProjection> ResolveProjection(const ProjectionPlan& plan,
                                                     const ProjectionPlan::Module& module,
                                                     const std::vector<AdapterHandle>& handles);

// The request's segments for one module. Counts the references that contribute and marks them
// `used`. INVALID_FIELD for DoRA beside other adapters.
absl::StatusOr<std::vector<ProjectionSegment>> ResolveSegments(const ProjectionPlan& plan,
                                                               const std::string& field,
                                                               const ResolvedProjection& resolved,
                                                               std::vector<bool>& used,
                                                               int32_t& applied);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PROJECTION_RESOLVE_H_
