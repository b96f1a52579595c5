// model.safetensors.index.json: which shard of a checkpoint holds which tensor.
#ifndef ADAPTERD_CORE_FORMATS_CHECKPOINT_INDEX_H_
#define ADAPTERD_CORE_FORMATS_CHECKPOINT_INDEX_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace adapterd {

// The largest published models have 200 shards; each holds a descriptor while it is open.
inline constexpr size_t kMaxCheckpointShards = 512;
// Over all shards. The largest published models have 100,000; each costs some 200 bytes here.
inline constexpr size_t kMaxCheckpointTensors = 1'000'000;
// The largest published indexes have 10 MB.
inline constexpr int64_t kMaxCheckpointIndexBytes = 64'000'000;

struct CheckpointIndex {
  struct Place {
    std::string tensor;
    size_t file = 0;  // in files
  };
  std::vector<std::string> files;  // as the index spells them, in the order first named
  std::vector<Place> places;       // by tensor, bytewise
};

// Reads {"metadata": {...}, "weight_map": {tensor: file}}; other keys are skipped. Needs memory for
// the table, not for a document. MALFORMED_TENSOR_FILE (with file, and the tensor where there is
// one) for what is not JSON or of another shape, a tensor or weight_map that comes twice, an empty
// weight_map, and more tensors, files or bytes of a name than allowed.
absl::StatusOr<CheckpointIndex> ParseCheckpointIndex(std::string_view json,
                                                     std::string_view file_name);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_CHECKPOINT_INDEX_H_
