// How many adapters of a kind the memory budget holds.
#ifndef ADAPTERD_SERVICE_CAPACITY_H_
#define ADAPTERD_SERVICE_CAPACITY_H_

#include "absl/status/status.h"
#include "adapterd/v1/adapter_creation.pb.h"
#include "core/registry/adapter_registry.h"

namespace adapterd {

// Fills `response`; changes nothing. INVALID_FIELD (negative sizes, no subject, errors of
// ModulesOf, a rank above the smaller side of a module), UNSUPPORTED_DTYPE, SHAPE_MISMATCH (sizes
// that overflow); for an adapter: ADAPTER_NOT_FOUND (also while it is loaded for the first time),
// REVISION_MISMATCH, ADAPTER_FAILED.
absl::Status FillCapacity(const AdapterRegistry& registry,
                          const v1::EstimateCapacityRequest& request,
                          v1::EstimateCapacityResponse& response);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_CAPACITY_H_
