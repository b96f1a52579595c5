// MergeCheckpoint: from the request to the stream of its progress.
#ifndef ADAPTERD_SERVICE_CHECKPOINT_CALL_H_
#define ADAPTERD_SERVICE_CHECKPOINT_CALL_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "adapterd/v1/merge_service.pb.h"
#include "core/merge/checkpoint_merge.h"
#include "core/registry/adapter_registry.h"
#include "service/stream_call.h"

namespace adapterd {

// Each has the disk and a thread for itself, and waits for both: more would only make all slower.
inline constexpr int kMaxCheckpointMerges = 4;

// What these calls work with; all of it outlives them.
struct CheckpointPlane {
  RpcEnvironment& environment;
  AdapterRegistry& registry;
  ThreadPool& drivers;  // of kMaxCheckpointMerges threads, each with one merge
  const CheckpointMergePlaces places;
  std::atomic<int> running = 0;
};

// Ends at once with INVALID_FIELD, UNSUPPORTED_DTYPE or OVERLOADED when it cannot begin. A client
// that reads slowly misses progress, never the result.
std::shared_ptr<StreamCall<v1::MergeCheckpointResponse>> StartCheckpointMerge(
    CheckpointPlane& plane, RpcMetrics& metrics, grpc::CallbackServerContext* context,
    const v1::MergeCheckpointRequest& request);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_CHECKPOINT_CALL_H_
