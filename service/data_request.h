// A request of the data plane in progress, whichever RPC it came by.
#ifndef ADAPTERD_SERVICE_DATA_REQUEST_H_
#define ADAPTERD_SERVICE_DATA_REQUEST_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/cancellation.h"
#include "service/data_plane.h"

namespace adapterd {

// Requests up to this size are parsed on gRPC's thread; to copy more of them takes longer than to
// wake a worker.
inline constexpr int64_t kShortRequestBytes = 192 << 10;

// Admitted -> parsed -> has its adapters -> prepared -> computed -> answered, each once, or
// answered with the first error. It waits for adapters that are loading without holding a thread.
//
// Threads: the steps run one after the other, on gRPC's thread or on workers. Cancel from any.
// Shared by whoever may cancel it and by what it waits for.
class DataRequest : public std::enable_shared_from_this<DataRequest> {
 public:
  virtual ~DataRequest() = default;

  // Goes as far as it can on this thread, which is gRPC's. `bytes` came over the wire. Once.
  void Start(int64_t bytes);

  // Nobody waits for the answer any more: it will be CANCELLED, unless it is too late for that.
  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_);

 protected:
  // What it needs of the registry.
  struct Needs {
    std::vector<AdapterRef> adapters;
    bool skip_disabled = false;
  };

  // Past `deadline` it is not begun.
  DataRequest(DataPlane& plane, absl::Time deadline);

  virtual absl::StatusOr<Needs> Parse() = 0;
  // With a handle for each adapter, in order; empty ones for disabled adapters that are skipped.
  // The result is the work in FLOPs.
  virtual absl::StatusOr<int64_t> Prepare(const std::vector<AdapterHandle>& handles) = 0;
  virtual absl::Status Compute() = 0;
  // The last step. Lets go of everything first: see Release.
  virtual void Answer(const absl::Status& status) = 0;
  DataPlane& plane() { return plane_; }
  const Cancellation& cancellation() const { return cancellation_; }
  const std::vector<AdapterHandle>& handles() const { return handles_; }
  // How long it has waited for workers.
  absl::Duration queued() const { return queued_; }
  // Takes room for the reply.
  absl::Status Grow(int64_t bytes) { return admitted_.Grow(bytes); }
  // Lets go of adapters and admission, so that a client which has its answer finds them free.
  void Release();

 private:
  using Handles = absl::StatusOr<std::vector<AdapterHandle>>;
  enum class Place { kGrpcThread, kWorker };

  void Begin(Place place);
  void Proceed(Handles handles, Place place);
  void Finish();
  void Wait(Needs needs) ABSL_LOCKS_EXCLUDED(mutex_);
  // OVERLOADED is the answer when too much waits already.
  void EnqueueIfThereIsRoom(absl::AnyInvocable<void()> step);
  // Runs `step` on a worker unless it is too late by then.
  void Enqueue(absl::AnyInvocable<void()> step);
  absl::Status CheckWanted() const;

  DataPlane& plane_;
  const std::chrono::steady_clock::time_point deadline_;  // the time of day may jump
  Cancellation cancellation_;
  absl::Duration queued_;
  Admission::Ticket admitted_;
  std::vector<AdapterHandle> handles_;

  absl::Mutex mutex_;
  AdapterRegistry::TicketPtr ticket_ ABSL_GUARDED_BY(mutex_);  // null: does not wait
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_DATA_REQUEST_H_
