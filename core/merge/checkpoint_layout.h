// How the tensors of a merged checkpoint lie in files.
#ifndef ADAPTERD_CORE_MERGE_CHECKPOINT_LAYOUT_H_
#define ADAPTERD_CORE_MERGE_CHECKPOINT_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/merge/checkpoint_plan.h"

namespace adapterd {

struct PlannedFile {
  std::string name;
  std::string start;  // length and header
  int64_t bytes = 0;  // of the whole file
};

struct CheckpointLayout {
  struct Place {
    size_t file = 0;
    int64_t offset = 0;  // of the tensor's first byte
    int64_t bytes = 0;
  };
  std::vector<PlannedFile> files;
  std::vector<Place> places;  // of the plan's tensors
  std::vector<size_t> order;  // of the plan's tensors: file by file, from start to end
  int64_t bytes = 0;          // of all tensors
  std::string index;          // JSON; empty: one file needs none
};

// The shards of the source under their names, or, with `max_shard_bytes`, files that are filled in
// the source's order and numbered. Each keeps the metadata of the file that its first tensor is
// from. INVALID_FIELD, about `max_shard_bytes`: more files than a checkpoint may have, each of
// which is open until the merge ends.
absl::StatusOr<CheckpointLayout> LayOutCheckpoint(const CheckpointPlan& plan,
                                                  const Checkpoint& source,
                                                  int64_t max_shard_bytes);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_MERGE_CHECKPOINT_LAYOUT_H_
