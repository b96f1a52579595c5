// What the data-plane services share.
#ifndef ADAPTERD_SERVICE_DATA_PLANE_H_
#define ADAPTERD_SERVICE_DATA_PLANE_H_

#include "absl/time/time.h"
#include "core/base/thread_pool.h"
#include "core/base_model/dora_gains.h"
#include "core/base_model/hosted_bases.h"
#include "core/compute/kernels.h"
#include "core/registry/adapter_registry.h"
#include "core/tensor/buffer_pool.h"
#include "service/admission.h"
#include "service/call_record.h"
#include "service/queue_limit.h"

namespace adapterd {

// All of it outlives the services.
struct DataPlane {
  RpcEnvironment& environment;
  AdapterRegistry& registry;
  const Kernels& kernels;
  ThreadPool& workers;
  QueueLimit& queue_limit;  // of the workers
  Admission& admission;
  BufferPool& buffers;  // of tensors in requests and replies
  HostedBases& bases;
  DoraGainCache& dora_gains;
  // Work that takes about kShortWork here, in FLOPs: requests of so much or less are computed where
  // they arrive, on gRPC's thread, because to wake a worker takes longer than they do.
  int64_t short_flops = 0;
};

// More would hold up the health checks, which are answered on the same threads.
inline constexpr absl::Duration kShortWork = absl::Microseconds(50);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_DATA_PLANE_H_
