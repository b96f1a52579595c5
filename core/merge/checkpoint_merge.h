// Adapters merged into a whole checkpoint, from folder to folder.
#ifndef ADAPTERD_CORE_MERGE_CHECKPOINT_MERGE_H_
#define ADAPTERD_CORE_MERGE_CHECKPOINT_MERGE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/compute/kernels.h"
#include "core/formats/disk.h"
#include "core/formats/source_roots.h"
#include "core/merge/checkpoint_plan.h"

namespace adapterd {

// All of it outlives the merge.
struct CheckpointMergePlaces {
  const SourceRoots& models;
  const SourceRoots& outputs;
  const Kernels& kernels;
  ThreadPool& pool;  // its idle threads help; they wait for disks
  std::shared_ptr<Disk> disk;
};

struct CheckpointProgress {
  std::string_view phase;  // "planning", "merging", "syncing"
  int64_t tensors_done = 0;
  int64_t tensors_total = 0;
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
  std::string_view current_tensor;
};

// Called with each phase and a few times a second, by one thread at a time; must be quick.
using ReportProgress = std::function<void(const CheckpointProgress&)>;

struct CheckpointMergeResult {
  std::vector<std::string> files;  // ascending
  int64_t merged_tensors = 0;
  int64_t copied_tensors = 0;
  int64_t bytes = 0;  // of all tensors
  std::vector<std::string> unmatched;
  std::string digest;  // CheckpointDigest
  MergeStats stats;    // over all merged tensors
};

// On the calling thread and idle ones of the pool, tensor by tensor. Needs memory for a few blocks
// a thread, whatever the size of the checkpoint. The output is there, complete and synced, when and
// only when the result is OK; a cancellation may come too late for that.
//
// Errors with the field `source`: those of BaseModel::Open; UNSUPPORTED_DTYPE for quantised
// weights; SOURCE_CHANGED when a file of it moved on meanwhile. Those of PlanCheckpoint,
// OutputFolder and WriteTensor.
absl::StatusOr<CheckpointMergeResult> MergeCheckpoint(const CheckpointMergePlaces& places,
                                                      const CheckpointMergeRequest& request,
                                                      const ReportProgress& report,
                                                      const Cancellation& cancellation);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_MERGE_CHECKPOINT_MERGE_H_
