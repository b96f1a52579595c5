// Requests for mixtures of adapters, as core/compose takes them.
#ifndef ADAPTERD_SERVICE_ADAPTER_COMPOSITION_H_
#define ADAPTERD_SERVICE_ADAPTER_COMPOSITION_H_

#include <vector>

#include "absl/status/statusor.h"
#include "adapterd/v1/adapter_creation.pb.h"
#include "core/compose/compose_spec.h"
#include "service/adapter_refs.h"

namespace adapterd {

struct ComposePlan {
  ComposeSpec spec;
  AdapterRefs adapters;
  std::vector<AdapterRefs::Use> uses;  // one an adapter of the request
};

// What can be checked without the adapters: INVALID_FIELD for names, weights, an unknown method or
// sign election, too many adapters, and an adapter that is to become itself.
absl::StatusOr<ComposePlan> PlanCompose(const v1::ComposeAdapterRequest& request);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADAPTER_COMPOSITION_H_
