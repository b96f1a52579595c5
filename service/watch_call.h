// WatchAdapters: a stream of the registry's events.
#ifndef ADAPTERD_SERVICE_WATCH_CALL_H_
#define ADAPTERD_SERVICE_WATCH_CALL_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "adapterd/v1/adapter_service.pb.h"
#include "core/base/thread_pool.h"
#include "core/registry/event_log.h"
#include "service/call_record.h"
#include "service/long_calls.h"

namespace adapterd {

// Every change is sent once to each.
inline constexpr size_t kMaxWatchers = 256;

// What watches work with; all of it outlives them.
struct WatchPlane {
  RpcEnvironment& environment;
  EventLog& events;
  ThreadPool& pool;  // builds messages; never waits
  LongCalls& watchers;
};

// One watch: a position in the event log. No thread waits for it; whatever happens (an event, a
// message that was taken, the client leaving, a drain) makes a step on the pool, which sends the
// next event or ends the call. Shared by gRPC (until OnDone), the event log and jobs of the pool.
class WatchCall final : public grpc::ServerWriteReactor<v1::WatchAdaptersResponse>,
                        public LongCall,
                        public std::enable_shared_from_this<WatchCall> {
 public:
  // Ends at once with INVALID_FIELD, SEQUENCE_EXPIRED, OVERLOADED or DRAINING when it cannot begin.
  // The client gets the call's metadata once no event after its beginning can be missed.
  static std::shared_ptr<WatchCall> Start(const WatchPlane& plane, RpcMetrics& metrics,
                                          grpc::CallbackServerContext* context,
                                          const v1::WatchAdaptersRequest& request);

  void End(const absl::Status& status) override ABSL_LOCKS_EXCLUDED(mutex_);
  void Cut() override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  WatchCall(const WatchPlane& plane, RpcMetrics& metrics, grpc::CallbackServerContext* context,
            const v1::WatchAdaptersRequest& request);
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnCancel() override;
  void OnDone() override;

  absl::Status Begin(const v1::WatchAdaptersRequest& request);
  void Wake();
  void Step() ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes the next event into message_. False when there is none; then end_ may say why.
  bool NextMessage() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const WatchPlane plane_;
  grpc::CallbackServerContext* const context_;
  CallRecord record_;
  std::shared_ptr<WatchCall> self_;  // gRPC's share
  int64_t subscription_ = 0;         // set before gRPC knows the call; 0: none
  std::atomic<bool> woken_{false};   // a step is queued

  absl::Mutex mutex_;
  int64_t position_ ABSL_GUARDED_BY(mutex_) = 0;  // of the last event sent
  v1::WatchAdaptersResponse message_;             // constant while writing_
  int64_t written_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status end_ ABSL_GUARDED_BY(mutex_);      // not OK: what it is to end with
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;  // gRPC has message_
  bool cutting_ ABSL_GUARDED_BY(mutex_) = false;  // context_ is in use
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_WATCH_CALL_H_
