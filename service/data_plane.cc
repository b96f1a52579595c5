#include "service/data_plane.h"

#include "core/base/status_macros.h"

namespace adapterd {

void RunWithAdapters(DataPlane& plane, std::shared_ptr<RpcCall> call,
                     const google::protobuf::Message& response, std::vector<AdapterRef> refs,
                     HandleWork work) {
  auto acquired = [&plane, call, &response, work = std::move(work)](
                      absl::StatusOr<std::vector<AdapterHandle>> handles) mutable {
    if (!handles.ok()) {
      if (call->Claim()) call->Answer(handles.status());
      return;
    }
    plane.workers.Submit([call, &response, handles = *std::move(handles), work = std::move(work),
                          submitted = absl::Now()]() mutable {
      call->Run(response, [&]() -> absl::Status {
        RETURN_IF_ERROR(call->cancellation().Check());
        return work(std::move(handles), absl::Now() - submitted);
      });
    });
  };
  AdapterRegistry::TicketPtr ticket = plane.registry.Acquire(std::move(refs), std::move(acquired));
  call->WhenCancelled([&plane, ticket] { plane.registry.Cancel(ticket); });
}

}  // namespace adapterd
