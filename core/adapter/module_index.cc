#include "core/adapter/module_index.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "absl/status/status.h"
#include "core/base/error.h"
#include "core/base/quote.h"

namespace adapterd {
namespace {

bool IsWholeNumber(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// True when `target` is a run of whole components at the end of `path`.
bool EndsWithComponents(std::string_view path, std::string_view target) {
  if (!path.ends_with(target)) return false;
  return path.size() == target.size() || path[path.size() - target.size() - 1] == '.';
}

absl::Status SelectorError(std::string message) {
  return Error(Reason::kInvalidField, std::move(message)).With("field", "module");
}

}  // namespace

std::string SelectorString(const ModuleSelector& selector) {
  if (!selector.path.empty()) return Printable(selector.path);
  if (!selector.layer) return Printable(selector.target);
  return fmt::format("{} (layer {})", Printable(selector.target), *selector.layer);
}

absl::Status CheckSelector(const ModuleSelector& selector) {
  if (selector.path.empty() && selector.target.empty()) {
    return SelectorError("the module selector names neither a path nor a target");
  }
  if (!selector.path.empty() && !selector.target.empty()) {
    return SelectorError("the module selector names both a path and a target: give one of them");
  }
  if (!selector.path.empty() && selector.layer) {
    return SelectorError(
        "the module selector has a layer beside a path: a layer goes with a target");
  }
  if (selector.layer && *selector.layer < 0) {
    return SelectorError(
        fmt::format("layer {} of the module selector is negative", *selector.layer));
  }
  if (selector.expert && *selector.expert < 0) {
    return SelectorError(
        fmt::format("expert {} of the module selector is negative", *selector.expert));
  }
  return absl::OkStatus();
}

std::optional<int32_t> LayerOf(std::string_view path) {
  while (true) {
    const size_t dot = path.find('.');
    const std::string_view component = path.substr(0, dot);
    if (IsWholeNumber(component)) {
      int32_t layer = 0;
      const auto result =
          std::from_chars(component.data(), component.data() + component.size(), layer);
      if (result.ec != std::errc()) return std::nullopt;
      return layer;
    }
    if (dot == std::string_view::npos) return std::nullopt;
    path.remove_prefix(dot + 1);
  }
}

std::string_view TargetOf(std::string_view path) {
  const size_t dot = path.rfind('.');
  return dot == std::string_view::npos ? path : path.substr(dot + 1);
}

ModuleIndex::ModuleIndex(const std::vector<std::string>& paths, const std::vector<Alias>& aliases) {
  by_path_.reserve(paths.size() + aliases.size());
  for (size_t i = 0; i < paths.size(); ++i) Add(paths[i], i);
  for (const auto& [path, position] : aliases) Add(path, position);
}

void ModuleIndex::Add(const std::string& path, size_t position) {
  const size_t entry = paths_.size();
  paths_.push_back(path);
  positions_.push_back(position);
  layers_.push_back(LayerOf(path));
  const bool is_first = by_path_.emplace(path, entry).second;
  if (is_first) by_target_[std::string(TargetOf(path))].push_back(entry);
}

std::vector<size_t> ModuleIndex::FindAll(const ModuleSelector& selector) const {
  if (!CheckSelector(selector).ok()) return {};
  if (!selector.path.empty()) {
    const auto found = by_path_.find(selector.path);
    if (found == by_path_.end()) return {};
    return {positions_[found->second]};
  }
  std::vector<size_t> matches;
  const auto candidates = by_target_.find(std::string(TargetOf(selector.target)));
  if (candidates == by_target_.end()) return matches;
  for (const size_t i : candidates->second) {
    // An alias comes behind all paths, and may repeat what is there.
    const bool is_alias = i != positions_[i];
    const bool repeats =
        is_alias && std::find(matches.begin(), matches.end(), positions_[i]) != matches.end();
    const bool layer_fits = !selector.layer || !layers_[i] || *layers_[i] == *selector.layer;
    if (!repeats && layer_fits && EndsWithComponents(paths_[i], selector.target)) {
      matches.push_back(positions_[i]);
    }
  }
  return matches;
}

absl::StatusOr<size_t> ModuleIndex::Find(const ModuleSelector& selector) const {
  if (absl::Status status = CheckSelector(selector); !status.ok()) return status;
  const std::vector<size_t> matches = FindAll(selector);
  if (matches.size() == 1) return matches[0];
  if (matches.empty()) {
    return Error(Reason::kModuleNotTargeted,
                 fmt::format("the adapter does not target {}", SelectorString(selector)))
        .With("module", SelectorString(selector));
  }
  std::string candidates;
  for (size_t i = 0; i < std::min(matches.size(), kMaxCandidates); ++i) {
    candidates += (i == 0 ? "" : ", ") + Printable(paths_[matches[i]]);
  }
  return Error(Reason::kInvalidField,
               fmt::format("{} matches {} modules: {}{}; name one by its path, or add a layer",
                           SelectorString(selector), matches.size(), candidates,
                           matches.size() > kMaxCandidates ? ", ..." : ""))
      .With("field", "module")
      .With("module", SelectorString(selector));
}

}  // namespace adapterd
