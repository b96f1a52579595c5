// What the data-plane services share.
#ifndef ADAPTERD_SERVICE_DATA_PLANE_H_
#define ADAPTERD_SERVICE_DATA_PLANE_H_

#include "core/base/thread_pool.h"
#include "core/compute/kernels.h"
#include "core/registry/adapter_registry.h"
#include "core/tensor/buffer_pool.h"
#include "service/admission.h"
#include "service/call_record.h"

namespace adapterd {

// All of it outlives the services.
struct DataPlane {
  RpcEnvironment& environment;
  AdapterRegistry& registry;
  const Kernels& kernels;
  ThreadPool& workers;
  Admission& admission;
  BufferPool& buffers;  // of tensors in requests and replies
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_DATA_PLANE_H_
