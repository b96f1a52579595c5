// Finds the module that a caller means.
#ifndef ADAPTERD_CORE_ADAPTER_MODULE_INDEX_H_
#define ADAPTERD_CORE_ADAPTER_MODULE_INDEX_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

namespace adapterd {

// Either `path` alone, or `target` with or without `layer`; an expert with either.
struct ModuleSelector {
  std::string path;
  std::string target;  // one or more whole components at the path's end
  std::optional<int32_t> layer;
  std::optional<int32_t> expert =
      std::nullopt;  // of a module that holds several; no part of the search
};

// "model.layers.3.self_attn.q_proj" or "q_proj (layer 3)": what errors call it.
std::string SelectorString(const ModuleSelector& selector);

// INVALID_FIELD unless exactly one of path and target is set, path has no layer beside it, and
// neither layer nor expert is negative. Says nothing about any adapter.
absl::Status CheckSelector(const ModuleSelector& selector);

// The first component of a path that is a whole number; nullopt when none is (then the module is
// layerless), or when the number does not fit.
std::optional<int32_t> LayerOf(std::string_view path);

// The last component.
std::string_view TargetOf(std::string_view path);

// Immutable once built; any thread. Find costs a hash lookup, and a comparison for each module that
// shares the last component.
class ModuleIndex {
 public:
  ModuleIndex() = default;
  // A second name of a module: another path, and its position.
  using Alias = std::pair<std::string, size_t>;

  // Of equal paths the first counts.
  explicit ModuleIndex(const std::vector<std::string>& paths,
                       const std::vector<Alias>& aliases = {});

  // Position in the list that the index was built from. A layerless module serves every layer.
  // MODULE_NOT_TARGETED: nothing matches. INVALID_FIELD: a selector that CheckSelector refuses, or
  // more than one match (the message lists at most kMaxCandidates).
  absl::StatusOr<size_t> Find(const ModuleSelector& selector) const;

  // All matches, for filters; empty when nothing matches.
  std::vector<size_t> FindAll(const ModuleSelector& selector) const;

  static constexpr size_t kMaxCandidates = 8;

 private:
  void Add(const std::string& path, size_t position);

  std::vector<std::string> paths_;  // aliases behind the others
  std::vector<size_t> positions_;   // of the modules that they name
  std::vector<std::optional<int32_t>> layers_;
  absl::flat_hash_map<std::string, size_t> by_path_;
  absl::flat_hash_map<std::string, std::vector<size_t>> by_target_;  // last component
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_MODULE_INDEX_H_
