// What the data-plane services share.
#ifndef ADAPTERD_SERVICE_DATA_PLANE_H_
#define ADAPTERD_SERVICE_DATA_PLANE_H_

#include "core/base/thread_pool.h"
#include "core/compute/kernels.h"
#include "core/registry/adapter_registry.h"
#include "service/admission.h"
#include "service/rpc_call.h"

namespace adapterd {

// All of it outlives the services.
struct DataPlane {
  RpcEnvironment& environment;
  AdapterRegistry& registry;
  const Kernels& kernels;
  ThreadPool& workers;
  Admission& admission;
};

// Acquires `refs` for `call`, waiting for loads within its deadline, then runs `work` with the
// handles on a worker and answers with its status. Handles of disabled adapters are empty when
// those are to be skipped, else the call fails. `work` gets the time that it waited in the queue.
using HandleWork =
    absl::AnyInvocable<absl::Status(std::vector<AdapterHandle> handles, absl::Duration queued)>;
void RunWithAdapters(DataPlane& plane, std::shared_ptr<RpcCall> call,
                     const google::protobuf::Message& response, std::vector<AdapterRef> refs,
                     bool skip_disabled, HandleWork work);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_DATA_PLANE_H_
