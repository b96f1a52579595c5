#include "core/adapter/base_model_names.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/adapter/module_index.h"

namespace adapterd {
namespace {

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kHeads[] = {"lm_head", "embed_out"};
// Encoder-decoder models keep the shared one beside copies that only point to it.
constexpr std::string_view kEmbeddings[] = {"shared", "embed_tokens", "wte", "word_embeddings",
                                            "embed_in"};

// Where models with other senses keep their language model: Qwen2-VL's and LLaVA's checkpoints are
// older than the module paths of transformers 4.52.
constexpr std::pair<std::string_view, std::string_view> kMoved[] = {
    {"model.language_model.", "model."},
    {"model.language_model.", "language_model.model."},
};

// After the first component; empty when there is only one.
std::string_view TailOf(std::string_view name) {
  const size_t dot = name.find('.');
  return dot == std::string_view::npos ? std::string_view() : name.substr(dot + 1);
}

bool IsNumber(std::string_view component) {
  return !component.empty() && std::all_of(component.begin(), component.end(),
                                           [](char c) { return c >= '0' && c <= '9'; });
}

std::optional<int64_t> OriginalLayer(int64_t layer, std::span<const LayerRange> ranges) {
  for (const LayerRange& range : ranges) {
    const int64_t count = range.end - range.start;
    if (layer < count) return range.start + layer;
    layer -= count;
  }
  return std::nullopt;
}

// The weights of modules whose last component is `target`.
std::vector<const CheckpointTensor*> WeightsCalled(std::string_view target,
                                                   const std::vector<CheckpointTensor>& tensors) {
  std::vector<const CheckpointTensor*> found;
  for (const CheckpointTensor& tensor : tensors) {
    std::string_view name = tensor.name;
    if (found.size() == BaseNames::kMaxMatches) break;
    if (!name.ends_with(kWeight)) continue;
    name.remove_suffix(kWeight.size());
    if (TargetOf(name) == target) found.push_back(&tensor);
  }
  return found;
}

}  // namespace

std::optional<std::string> OriginalLayerPath(std::string_view path,
                                             std::span<const LayerRange> ranges) {
  const std::optional<int32_t> layer = LayerOf(path);
  if (ranges.empty() || !layer) return std::string(path);
  const auto original = OriginalLayer(*layer, ranges);
  if (!original) return std::nullopt;
  size_t begin = 0;
  size_t end = path.find('.');
  while (!IsNumber(path.substr(begin, end - begin))) {
    begin = end + 1;
    end = path.find('.', begin);
  }
  const std::string_view rest = end == std::string_view::npos ? "" : path.substr(end);
  return fmt::format("{}{}{}", path.substr(0, begin), *original, rest);
}

bool IsVocabularyModule(std::string_view path) {
  return IsEmbeddingModule(path) ||
         std::find(std::begin(kHeads), std::end(kHeads), TargetOf(path)) != std::end(kHeads);
}

bool IsEmbeddingModule(std::string_view path) {
  return std::find(std::begin(kEmbeddings), std::end(kEmbeddings), TargetOf(path)) !=
         std::end(kEmbeddings);
}

BaseNames::BaseNames(const std::vector<CheckpointTensor>& tensors) : tensors_(tensors) {
  tails_.reserve(tensors.size());
  for (const CheckpointTensor& tensor : tensors) {
    tails_.emplace_back(TailOf(tensor.name), &tensor);
  }
  std::sort(tails_.begin(), tails_.end());
  for (const std::string_view embedding : kEmbeddings) {
    if (embeddings_.empty()) embeddings_ = WeightsCalled(embedding, tensors);
  }
}

std::vector<const CheckpointTensor*> BaseNames::Find(std::string_view path,
                                                     std::string_view suffix) const {
  const std::string name = fmt::format("{}{}", path, suffix);
  if (const CheckpointTensor* exact = FindTensor(tensors_, name)) return {exact};
  std::vector<const CheckpointTensor*> found;
  const auto add = [&](const CheckpointTensor* tensor) {
    if (tensor != nullptr && std::find(found.begin(), found.end(), tensor) == found.end()) {
      found.push_back(tensor);
    }
  };
  // A path of one component has no prefix that could be left out.
  if (!TailOf(path).empty()) add(FindTensor(tensors_, TailOf(name)));
  const auto less = [](const auto& entry, std::string_view tail) { return entry.first < tail; };
  const std::string_view wanted = name;
  for (auto it = std::lower_bound(tails_.begin(), tails_.end(), wanted, less);
       it != tails_.end() && it->first == name && found.size() < kMaxMatches; ++it) {
    add(it->second);
  }
  for (const auto& [one, other] : kMoved) {
    for (const auto& [from, to] : {std::pair(one, other), std::pair(other, one)}) {
      if (!name.starts_with(from)) continue;
      add(FindTensor(tensors_, fmt::format("{}{}", to, name.substr(from.size()))));
    }
  }
  return found;
}

std::vector<const CheckpointTensor*> BaseNames::FindTied(std::string_view path) const {
  const bool is_head =
      std::find(std::begin(kHeads), std::end(kHeads), TargetOf(path)) != std::end(kHeads);
  return is_head ? embeddings_ : std::vector<const CheckpointTensor*>();
}

}  // namespace adapterd
