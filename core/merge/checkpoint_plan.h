// What merging adapters into a checkpoint makes of each of its tensors, before any is read.
#ifndef ADAPTERD_CORE_MERGE_CHECKPOINT_PLAN_H_
#define ADAPTERD_CORE_MERGE_CHECKPOINT_PLAN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/adapter/base_model.h"
#include "core/registry/module_merge.h"

namespace adapterd {

// The handle outlives the merge.
struct CheckpointAdapter {
  std::string name;
  double weight = 1;
  const AdapterHandle* handle = nullptr;
};

struct CheckpointMergeRequest {
  std::string source;                       // a folder below a model root
  std::string output;                       // a folder to be made below an output root
  std::vector<CheckpointAdapter> adapters;  // at least one, none twice
  std::optional<DType> dtype;               // to convert floats to; nullopt: each keeps its own
  int64_t max_shard_bytes = 0;              // 0: the source's shards
  bool allow_unmatched = false;
  bool allow_non_finite = false;
};

// Consecutive rows of a tensor's matrix that are one weight: all, or those of one expert.
struct PlannedSlice {
  int64_t first_row = 0;
  WeightMatrix matrix;
  Shape shape;                   // as the module sees its weight
  std::vector<MergePart> parts;  // at least one
};

// Views checkpoint and request.
struct OutputTensor {
  std::string name;
  const CheckpointTensor* source = nullptr;  // of an untied head: the embedding
  DType dtype = DType::kF32;                 // of the output, as the shape
  Shape shape;
  std::vector<PlannedSlice> slices;  // ascending; empty: no adapter changes it as a weight
  std::vector<MergePart> bias;       // empty: none changes it as a bias
  const Tensor* resized =
      nullptr;  // an adapter's weight of another shape, in place of the source's

  bool merged() const { return !slices.empty() || !bias.empty(); }
};

struct CheckpointPlan {
  std::vector<OutputTensor> tensors;   // by name, bytewise
  std::vector<std::string> unmatched;  // paths of modules, ascending, each once
  std::optional<int64_t> vocab_size;   // when it is another
  bool untied = false;                 // the head has a weight of its own now
};

// What adapters are to a tensor:
//   a pair            its delta, also of a convolution, Conv1D or expert
//   DoRA, replacement alone and with weight 1
//   lora_bias         added to the layer's bias, which must be there: transformers would not read
//   one
//                     that the architecture does not have
//   a larger vocabulary  the tensor takes the adapter's shape; all tensors of the vocabulary must
//   a tied head       gets a weight of its own, as a copy of the embedding's
//   fused experts     also where the checkpoint keeps them apart (expert_names.h)
//
// MODULE_NOT_TARGETED: modules that the checkpoint lacks, unless allowed; always for one whose
// place cannot be told. BASE_MODEL_MISMATCH: see BindToBase; a bias that the layer does not have; a
// vocabulary that only some tensors take. UNSUPPORTED_DTYPE: a tensor to be merged or converted is
// no F32, F16 or BF16. UNSUPPORTED_ADAPTER: layer_replication. INVALID_FIELD, SHAPE_MISMATCH: as
// CheckAlone and MatrixOf.
absl::StatusOr<CheckpointPlan> PlanCheckpoint(const BaseModel& base,
                                              const CheckpointMergeRequest& request);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_MERGE_CHECKPOINT_PLAN_H_
