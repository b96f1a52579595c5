// ReconcileAdapters: desired specs in, a plan carried out.
#ifndef ADAPTERD_SERVICE_RECONCILE_H_
#define ADAPTERD_SERVICE_RECONCILE_H_

#include <memory>

#include "adapterd/v1/adapter_service.pb.h"
#include "service/adapter_service.h"
#include "service/rpc_call.h"

namespace adapterd {

inline constexpr int kMaxDesired = 10'000;  // as many adapters as a server is built for
// Loads that run at once: enough to keep the readers busy, while those of others still get in
// between.
inline constexpr size_t kMaxReconcileLoads = 16;
// Of a change's error, so that a reply of all changes stays below the 4 MB that clients accept.
inline constexpr size_t kMaxChangeErrorBytes = 256;

// Answers `call`: INVALID_FIELD for specs that no load would take, too many and a name twice; else
// with all changes, once they are made. Unloads go first, so that their memory is there. When the
// caller goes away the loads that nobody else waits for are dropped. To be called on the control
// pool, where it goes on; waits for nothing.
void Reconcile(ControlPlane& plane, std::shared_ptr<RpcCall> call,
               const v1::ReconcileAdaptersRequest& request,
               v1::ReconcileAdaptersResponse& response);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_RECONCILE_H_
