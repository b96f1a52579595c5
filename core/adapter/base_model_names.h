// Which tensor of a checkpoint an adapter means by the path of a module.
#ifndef ADAPTERD_CORE_ADAPTER_BASE_MODEL_NAMES_H_
#define ADAPTERD_CORE_ADAPTER_BASE_MODEL_NAMES_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/formats/checkpoint.h"

namespace adapterd {

// Layers [start, end) of the original stack. REQUIRES: 0 <= start < end.
struct LayerRange {
  int64_t start = 0;
  int64_t end = 0;
};

// `path` with its layer, counted in the stack that `ranges` make when they are laid end to end,
// replaced by the original one (PEFT's layer_replication). Unchanged without ranges or layer;
// nullopt when the stack has no such layer.
std::optional<std::string> OriginalLayerPath(std::string_view path,
                                             std::span<const LayerRange> ranges);

// True for the last components by which models call their embedding or their output head.
bool IsVocabularyModule(std::string_view path);

// True for an embedding's alone.
bool IsEmbeddingModule(std::string_view path);

// An index over the names of one base model's tensors, which must outlive it. Immutable; any
// thread. Making it costs a sort of the names, a search a few binary searches.
class BaseNames {
 public:
  explicit BaseNames(const Checkpoint& checkpoint) : BaseNames(checkpoint.tensors()) {}
  explicit BaseNames(const std::vector<CheckpointTensor>& tensors);  // sorted by name

  // The tensors that `path` + `suffix` may mean: that very name; else the name without its first
  // component, with another one before it, and with the language model of a multimodal model at
  // another place (prefixes differ between a model with and without its head, and between versions
  // of transformers). None: it is not there. More than one: it cannot be told.
  std::vector<const CheckpointTensor*> Find(std::string_view path, std::string_view suffix) const;

  // The embeddings whose weight an output head at `path` would share; none when `path` is no head.
  std::vector<const CheckpointTensor*> FindTied(std::string_view path) const;

  // The most that Find and FindTied give.
  static constexpr size_t kMaxMatches = 4;

 private:
  const std::vector<CheckpointTensor>& tensors_;
  // Names without their first component, sorted.
  std::vector<std::pair<std::string_view, const CheckpointTensor*>> tails_;
  std::vector<const CheckpointTensor*> embeddings_;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_BASE_MODEL_NAMES_H_
