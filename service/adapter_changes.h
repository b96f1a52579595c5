// Requests that change a loaded adapter, as the registry takes them.
#ifndef ADAPTERD_SERVICE_ADAPTER_CHANGES_H_
#define ADAPTERD_SERVICE_ADAPTER_CHANGES_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adapterd/v1/adapter_service.pb.h"
#include "core/registry/registry_types.h"

namespace adapterd {

// A field that the mask names and the request does not have becomes its default. INVALID_FIELD for
// an unknown name in the mask, and for labels that it does not name.
absl::StatusOr<UpdateRequest> UpdateRequestFromProto(const v1::UpdateAdapterRequest& request);

// INVALID_FIELD.
absl::Status CheckRollback(const v1::RollbackAdapterRequest& request);
absl::Status CheckAlias(const v1::SetAliasRequest& request);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADAPTER_CHANGES_H_
