// The weights of a base model, as Hugging Face tools store them: model.safetensors, or shards and
// their index. docs/formats/checkpoint.md is the whole story.
#ifndef ADAPTERD_CORE_FORMATS_CHECKPOINT_H_
#define ADAPTERD_CORE_FORMATS_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/formats/checkpoint_index.h"
#include "core/formats/input_file.h"
#include "core/formats/source_roots.h"
#include "core/tensor/dtype.h"
#include "core/tensor/shape.h"

namespace adapterd {

inline constexpr std::string_view kCheckpointFileName = "model.safetensors";
inline constexpr std::string_view kCheckpointIndexName = "model.safetensors.index.json";

struct CheckpointTensor {
  std::string name;
  size_t file = 0;  // in Checkpoint::files()
  DType dtype = DType::kF32;
  Shape shape;
  int64_t offset = 0;  // of the first byte, from the start of the file
  int64_t bytes = 0;
};

// In a table that is sorted by name; nullptr when it is not there. Costs a binary search.
const CheckpointTensor* FindTensor(const std::vector<CheckpointTensor>& tensors,
                                   std::string_view name);

// An open checkpoint: every header read and checked, no weight read. Owns its files. Immutable; any
// thread. Costs memory for the table of tensors and one descriptor a shard.
class Checkpoint {
 public:
  // Opens what `folder` holds: model.safetensors when it is there (as transformers prefers it),
  // else the shards of the index. Every tensor in their headers counts, also what the index leaves
  // out. SOURCE_NOT_FOUND: an empty folder, no such files, or a shard that is missing.
  // UNSAFE_FORMAT: only pickled weights. PATH_OUTSIDE_ROOT: a shard outside the root.
  // MALFORMED_TENSOR_FILE: a broken index or header, a tensor that its shard lacks or that two
  // shards hold.
  static absl::StatusOr<Checkpoint> Open(const SourceFolder& folder);

  // By name, bytewise.
  const std::vector<CheckpointTensor>& tensors() const { return tensors_; }
  // nullptr when there is none. Costs a binary search.
  const CheckpointTensor* Find(std::string_view name) const { return FindTensor(tensors_, name); }

  const std::vector<InputFile>& files() const { return files_; }
  // Names and states of all files in use, the index among them, in a fixed order.
  std::vector<std::pair<std::string, FileIdentity>> identity() const;
  // SOURCE_CHANGED when any of them moved on since it was opened.
  absl::Status CheckUnchanged() const;

  // Reads consecutive rows from `first_row` on into `out`, which decides how many: a row is a slice
  // of `row_elements` elements, counted over the whole tensor (a matrix [out, in] has rows of `in`,
  // experts [e, out, in] too). SHAPE_MISMATCH unless rows are whole bytes, `out` is whole rows and
  // all lie in the tensor; SOURCE_CHANGED and SOURCE_UNAVAILABLE as InputFile::ReadAt.
  absl::Status ReadRows(const CheckpointTensor& tensor, int64_t row_elements, int64_t first_row,
                        std::span<std::byte> out) const;

 private:
  Checkpoint() = default;

  absl::Status OpenShards(const SourceFolder& folder);
  // Reads the header of `file` and adds its tensors.
  absl::Status AddFile(InputFile file);
  absl::Status SortTensors();
  absl::Status CheckAgainst(const CheckpointIndex& index, std::string_view index_name) const;

  std::vector<InputFile> files_;  // weights; then the index, when there is one
  std::vector<CheckpointTensor> tensors_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_CHECKPOINT_H_
