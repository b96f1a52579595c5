#include "service/data_plane.h"

#include "core/base/status_macros.h"

namespace adapterd {

void RunWithAdapters(DataPlane& plane, std::shared_ptr<RpcCall> call,
                     const google::protobuf::Message& response, std::vector<AdapterRef> refs,
                     bool skip_disabled, HandleWork work) {
  auto acquired = [&plane, call, &response, work = std::move(work)](
                      absl::StatusOr<std::vector<AdapterHandle>> handles) mutable {
    if (!handles.ok()) {
      work = nullptr;  // lets go of its admission first, as Run does
      if (call->Claim()) call->Answer(handles.status());
      return;
    }
    absl::AnyInvocable<absl::Status()> run = [&cancellation = call->cancellation(),
                                              handles = *std::move(handles), work = std::move(work),
                                              submitted = absl::Now()]() mutable -> absl::Status {
      RETURN_IF_ERROR(cancellation.Check());
      return work(std::move(handles), absl::Now() - submitted);
    };
    plane.workers.Submit(
        [call, &response, run = std::move(run)]() mutable { call->Run(response, std::move(run)); });
  };
  AdapterRegistry::TicketPtr ticket =
      plane.registry.Acquire(std::move(refs), skip_disabled, std::move(acquired));
  call->WhenCancelled([&plane, ticket] { plane.registry.Cancel(ticket); });
}

}  // namespace adapterd
