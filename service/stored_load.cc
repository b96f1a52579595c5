#include "service/stored_load.h"

#include <string>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/catalog/made_content.h"

namespace adapterd {
namespace {

struct Loading {
  ControlPlane& plane;
  StoredContent stored;
  const std::string name;
  AdapterRegistry::Done<LoadResult> done;
};

void Discard(const std::shared_ptr<Loading>& loading, absl::StatusOr<LoadResult> result) {
  loading->stored = StoredContent();
  loading->plane.collector.Request(
      [loading, result = std::move(result)]() mutable { loading->done(std::move(result)); });
}

void Ended(const std::shared_ptr<Loading>& loading, absl::StatusOr<LoadResult> result) {
  ControlPlane& plane = loading->plane;
  if (result.status().code() == absl::StatusCode::kCancelled) {
    // The load itself ends a little later, and holds on to the content until then. An update of
    // nothing waits for it.
    UpdateRequest nothing;
    nothing.name = loading->name;
    plane.registry.Update(std::move(nothing), [loading, status = result.status()](
                                                  const absl::StatusOr<AdapterSnapshot>&) {
      Discard(loading, status);
    });
    return;
  }
  const bool leaves_garbage = !result.ok() || plane.content->temporary() ||
                              result->already_loaded || !result->replaced_revision.empty();
  if (leaves_garbage) return Discard(loading, std::move(result));
  loading->stored = StoredContent();  // the adapter names it by now
  loading->done(std::move(result));
}

}  // namespace

absl::Status CheckStore(const ControlPlane& plane) {
  if (plane.draining) return Error(Reason::kDraining, "the server is shutting down");
  if (plane.content == nullptr) {
    return Error(
        Reason::kNoDataDir,
        "there is no folder to write adapters to: the server needs --data-dir, or a folder "
        "for temporary files that it may write to");
  }
  return absl::OkStatus();
}

AdapterRegistry::TicketPtr LoadStored(ControlPlane& plane, StoredContent stored, LoadRequest load,
                                      AdapterRegistry::Done<LoadResult> done) {
  load.source.stored = stored.key();
  load.reloadable = !plane.content->temporary();
  std::shared_ptr<Loading> loading(
      new Loading{plane, std::move(stored), load.name, std::move(done)});
  return plane.registry.Load(std::move(load), [loading](absl::StatusOr<LoadResult> result) {
    Ended(loading, std::move(result));
  });
}

absl::StatusOr<StoredContent> StoreForLoad(ControlPlane& plane, const LoadRequest& load,
                                           const MadeAdapter& made,
                                           const Cancellation& cancellation) {
  RETURN_IF_ERROR(CheckStore(plane));
  RETURN_IF_ERROR(plane.registry.CheckRoomFor(load, *made.manifest));
  return StoreMade(*plane.content, made, cancellation);
}

}  // namespace adapterd
