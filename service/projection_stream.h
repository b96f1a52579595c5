// StreamProjections: ApplyProjection many times over one stream.
#ifndef ADAPTERD_SERVICE_PROJECTION_STREAM_H_
#define ADAPTERD_SERVICE_PROJECTION_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "service/data_plane.h"
#include "service/long_calls.h"
#include "service/projection_request.h"

namespace adapterd {

inline constexpr size_t kMaxProjectionStreams = 4096;

// Requests of one stream that are worked on or wait to be sent. Beyond it nothing more is read, so
// that flow control holds the client back.
inline constexpr size_t kMaxStreamedRequests = 64;

// One stream. Requests are worked on side by side, short ones on the thread that reads them;
// replies are sent in the order of the requests. No thread waits. Shared by gRPC (until OnDone) and
// by the requests that are worked on.
class ProjectionStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                               public LongCall,
                               public std::enable_shared_from_this<ProjectionStream> {
 public:
  // Ends at once with OVERLOADED or DRAINING when it cannot begin.
  static std::shared_ptr<ProjectionStream> Start(DataPlane& plane, LongCalls& streams,
                                                 RpcMetrics& metrics,
                                                 grpc::CallbackServerContext* context);

  // Replies to what was read are sent before.
  void End(const absl::Status& status) override ABSL_LOCKS_EXCLUDED(mutex_);
  void Cut() override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Slot {
    uint64_t request_id = 0;
    std::shared_ptr<ProjectionRequest> request;  // until it is answered
    std::optional<grpc::ByteBuffer> reply;       // from then on
  };

  ProjectionStream(DataPlane& plane, LongCalls& streams, RpcMetrics& metrics,
                   grpc::CallbackServerContext* context);
  void OnReadDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone() override;

  absl::Status Begin();
  // The message that was read, in a slot of its own; null when it came too late.
  absl::StatusOr<std::shared_ptr<ProjectionRequest>> Take() ABSL_LOCKS_EXCLUDED(mutex_);
  void Answer(const std::shared_ptr<Slot>& slot,
              absl::StatusOr<ProjectionRequest::Response> response) ABSL_LOCKS_EXCLUDED(mutex_);
  // Nobody takes replies any more.
  void Abandon() ABSL_LOCKS_EXCLUDED(mutex_);
  // Starts whatever can be done next: a read, a write, the end.
  void Step() ABSL_LOCKS_EXCLUDED(mutex_);
  // One of users_ is done. The last one ends a stream that has nothing left to do.
  void Leave() ABSL_LOCKS_EXCLUDED(mutex_);
  // No more is read.
  bool Ends() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return half_closed_ || !end_.ok(); }

  DataPlane& plane_;
  LongCalls& streams_;
  grpc::CallbackServerContext* const context_;
  CallRecord record_;
  std::shared_ptr<ProjectionStream> self_;  // gRPC's share
  grpc::ByteBuffer incoming_;               // gRPC's while reading_

  absl::Mutex mutex_;
  std::deque<std::shared_ptr<Slot>> slots_ ABSL_GUARDED_BY(mutex_);  // in the order of requests
  grpc::ByteBuffer outgoing_;                                        // constant while writing_
  int64_t written_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status end_ ABSL_GUARDED_BY(mutex_);  // not OK: what it is to end with
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool half_closed_ ABSL_GUARDED_BY(mutex_) = false;  // the client sends no more
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool abandoned_ ABSL_GUARDED_BY(mutex_) = false;
  // Threads that are about to tell gRPC something: it frees the call once that is finished.
  int users_ ABSL_GUARDED_BY(mutex_) = 0;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_PROJECTION_STREAM_H_
