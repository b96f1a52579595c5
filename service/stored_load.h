// Loads of what lies in the content store: uploads, and what is made in the server.
#ifndef ADAPTERD_SERVICE_STORED_LOAD_H_
#define ADAPTERD_SERVICE_STORED_LOAD_H_

#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/adapter/made_adapter.h"
#include "core/catalog/content_store.h"
#include "core/registry/adapter_registry.h"
#include "service/adapter_convert.h"
#include "service/adapter_service.h"
#include "service/rpc_call.h"

namespace adapterd {

// What speaks against storing content: DRAINING; NO_DATA_DIR without a folder to write to.
absl::Status CheckStore(const ControlPlane& plane);

// Loads `stored` as `load`, whose source is set here. `done` runs once, when the load has ended and
// content that no adapter names any more is gone: this one too, when the load failed or `load` was
// a no-op, and always in a temporary store, from which nothing is read again.
AdapterRegistry::TicketPtr LoadStored(ControlPlane& plane, StoredContent stored, LoadRequest load,
                                      AdapterRegistry::Done<LoadResult> done);

// Writes to the store what is to be loaded as `load`, unless there is no room for it in memory. On
// a thread that may wait for a disk. Errors of CheckStore, CheckRoomFor and StoreMade.
absl::StatusOr<StoredContent> StoreForLoad(ControlPlane& plane, const LoadRequest& load,
                                           const MadeAdapter& made,
                                           const Cancellation& cancellation);

// Runs `make` on a making thread, of which there are few: loads do not wait for it, and others that
// make something do. Serves what it makes as `load`, and answers with that adapter:
// CreateAdapter and ComposeAdapter. A name that has equal content already is answered with
// already_loaded, so that a call whose answer was lost can be repeated.
template <typename Response>
void ServeMade(ControlPlane& plane, std::shared_ptr<RpcCall> call, LoadRequest load,
               Response* response, absl::AnyInvocable<absl::StatusOr<MadeAdapter>()> make);

// Implementation only below.

template <typename Response>
void ServeMade(ControlPlane& plane, std::shared_ptr<RpcCall> call, LoadRequest load,
               Response* response, absl::AnyInvocable<absl::StatusOr<MadeAdapter>()> make) {
  plane.making_pool.Submit([&plane, call = std::move(call), load = std::move(load), response,
                            make = std::move(make)]() mutable {
    StoredContent stored;
    const absl::Status status = GuardedCall([&]() -> absl::Status {
      absl::StatusOr<MadeAdapter> made = make();
      if (!made.ok()) return made.status();
      absl::StatusOr<StoredContent> content =
          StoreForLoad(plane, load, *made, call->cancellation());
      if (content.ok()) stored = *std::move(content);
      return content.status();
    });
    make = nullptr;  // what it held is not needed for the load
    if (!status.ok()) {
      if (call->Claim()) call->Answer(status);
      return;
    }
    auto ticket = LoadStored(plane, std::move(stored), std::move(load),
                             [call, response](absl::StatusOr<LoadResult> result) {
                               if (!call->Claim()) return;
                               if (result.ok()) {
                                 ToProto(result->adapter, v1::ADAPTER_VIEW_BASIC,
                                         *response->mutable_adapter());
                                 response->set_already_loaded(result->already_loaded);
                               }
                               call->Answer(result.status(), response);
                             });
    call->WhenCancelled([&plane, ticket] { plane.registry.Cancel(ticket); });
  });
}

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_STORED_LOAD_H_
