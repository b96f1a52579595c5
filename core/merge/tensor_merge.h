// One tensor on its way from checkpoint to checkpoint.
#ifndef ADAPTERD_CORE_MERGE_TENSOR_MERGE_H_
#define ADAPTERD_CORE_MERGE_TENSOR_MERGE_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "core/base/cancellation.h"
#include "core/base/thread_pool.h"
#include "core/compute/kernels.h"
#include "core/formats/disk.h"
#include "core/merge/checkpoint_plan.h"

namespace adapterd {

// What every tensor of a merge is written with; all of it outlives the merge.
struct TensorWriting {
  const Checkpoint& source;
  const Kernels& kernels;
  ThreadPool& pool;  // idle threads help with a block
  Disk& disk;
  const Cancellation& cancellation;
  bool allow_non_finite = false;
  std::function<void(int64_t bytes)> wrote;  // after each block, on the writing thread
};

struct TensorPlace {
  int file = -1;  // a descriptor
  int64_t offset = 0;
  std::string file_name;  // for errors
};

struct TensorOutcome {
  std::string sha256;   // of the bytes written
  RoundingStats stats;  // of a tensor that no adapter changes: what conversion did
};

// Reads the tensor block by block, and writes it: as it is, converted, or merged. Holds two blocks
// of a few MB, and the factors of one module, packed. Threads: any, for different tensors at once.
// NON_FINITE_RESULT, STORAGE_FULL, SOURCE_CHANGED, SOURCE_UNAVAILABLE, SHAPE_MISMATCH, CANCELLED.
absl::StatusOr<TensorOutcome> WriteTensor(const OutputTensor& tensor, const TensorPlace& place,
                                          const TensorWriting& writing);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_MERGE_TENSOR_MERGE_H_
