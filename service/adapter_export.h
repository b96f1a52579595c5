// Weights of loaded adapters on their way out: single modules, and whole exports.
#ifndef ADAPTERD_SERVICE_ADAPTER_EXPORT_H_
#define ADAPTERD_SERVICE_ADAPTER_EXPORT_H_

#include <functional>

#include "absl/status/status.h"
#include "adapterd/v1/adapter_service.pb.h"
#include "core/adapter/tensor_role.h"
#include "core/registry/adapter_handle.h"
#include "core/tensor/tensor.h"
#include "service/rpc_call.h"

namespace adapterd {

inline constexpr int64_t kExportPieceBytes = 1 << 20;

// INVALID_FIELD: what can be said without the adapter.
absl::Status CheckExport(const v1::ExportAdapterRequest& request);

// Fills `response` with the tensors of the module that the request names.
absl::Status FillTensors(const RpcCall& call, const v1::GetAdapterTensorsRequest& request,
                         const AdapterHandle& adapter, v1::GetAdapterTensorsResponse& response);

// A tensor in the form of core/adapter's ModuleTensors: experts one after the other. `module` has
// it.
Tensor TensorOf(const AdapterHandle& adapter, size_t module, TensorRole role);

// Hands every message of the stream to `write`, and stops at its first error.
absl::Status WriteExport(
    const v1::ExportAdapterRequest& request, const AdapterHandle& adapter,
    const std::function<absl::Status(const v1::ExportAdapterResponse&)>& write);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADAPTER_EXPORT_H_
