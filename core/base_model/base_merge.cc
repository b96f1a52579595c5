#include "core/base_model/base_merge.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"
#include "core/base_model/merge_targets.h"
#include "core/base_model/module_patterns.h"

namespace adapterd {
namespace {

// What will be merged into the modules that change.
using Changes = std::map<size_t, std::vector<MergedAdapter>>;

using MergeAdapterRef = BaseMergeRequest::Adapter;

absl::Status AboutMerged(Reason reason, const std::string& adapter, const std::string& module,
                         std::string_view what) {
  return Error(reason, fmt::format("adapter \"{}\" {} module {}", adapter, what, Quoted(module)))
      .With("adapter", adapter)
      .With("module", Printable(module));
}

// An adapter of which a part is missing is another adapter.
absl::Status NotHeld(const std::string& adapter, const std::string& path) {
  return Error(Reason::kModuleNotTargeted,
               fmt::format("adapter \"{}\" targets module {}, which the base model does not hold: "
                           "choose the modules to merge into",
                           adapter, Quoted(path)))
      .With("adapter", adapter)
      .With("module", Printable(path));
}

// Collects what a merge changes.
class Merge {
 public:
  Merge(std::shared_ptr<const HostedBase> base, const BaseMergeRequest& request)
      : base_(std::move(base)), request_(request), overlays_(base_->overlays()) {}

  absl::StatusOr<Changes> Plan() {
    ASSIGN_OR_RETURN(ModulePatterns patterns, ModulePatterns::Compile(request_.modules));
    for (const MergeAdapterRef& adapter : request_.adapters) {
      RETURN_IF_ERROR(CheckNamedOnce(adapter));
      RETURN_IF_ERROR(AddAdapter(adapter, patterns));
      RETURN_IF_ERROR(CheckElsewhere(adapter));
    }
    RETURN_IF_ERROR(patterns.CheckAllMatched());
    for (auto& [module, adapters] : changes_) {
      std::sort(adapters.begin(), adapters.end(),
                [](const auto& a, const auto& b) { return a.name < b.name; });
    }
    return std::move(changes_);
  }

 private:
  absl::Status CheckNamedOnce(const MergeAdapterRef& adapter) const {
    const auto same = [&](const MergeAdapterRef& other) { return other.name == adapter.name; };
    if (std::count_if(request_.adapters.begin(), request_.adapters.end(), same) == 1) {
      return absl::OkStatus();
    }
    return Error(Reason::kInvalidField,
                 fmt::format("adapters: \"{}\" is named more than once", adapter.name))
        .With("field", "adapters")
        .With("adapter", adapter.name);
  }

  absl::Status AddAdapter(const MergeAdapterRef& adapter, ModulePatterns& patterns) {
    ASSIGN_OR_RETURN(const auto targets,
                     FindTargets(adapter.name, adapter.handle->manifest(), base_));
    bool any = false;
    for (const auto& [module, target] : targets.found) {
      ASSIGN_OR_RETURN(const bool wanted, patterns.Match(base_->modules()[module].path));
      if (!wanted) continue;
      any = true;
      RETURN_IF_ERROR(AddModule(adapter, module, target));
    }
    for (const std::string& path : targets.missing) {
      ASSIGN_OR_RETURN(const bool wanted, patterns.Match(path));
      if (wanted) return NotHeld(adapter.name, path);
    }
    if (any) return absl::OkStatus();
    return Error(Reason::kModuleNotTargeted,
                 fmt::format("adapter \"{}\" targets none of the {}modules of the base model",
                             adapter.name, request_.modules.empty() ? "" : "chosen "))
        .With("adapter", adapter.name);
  }

  absl::Status AddModule(const MergeAdapterRef& adapter, size_t module,
                         const AdapterTarget& target) {
    if (const MergedAdapter* merged = FindMerged(module, adapter.name)) {
      const std::string& path = base_->modules()[module].path;
      if (!request_.skip_merged) {
        return AboutMerged(Reason::kAlreadyMerged, adapter.name, path, "is merged already into");
      }
      return CheckSame(adapter, *merged, path);
    }
    const auto [change, is_new] = changes_.try_emplace(module);
    if (is_new && overlays_[module] != nullptr) change->second = overlays_[module]->adapters();
    change->second.push_back({adapter.name, (*adapter.handle)->revision(), adapter.weight,
                              adapter.handle, target.module, target.layout});
    return absl::OkStatus();
  }

  const MergedAdapter* FindMerged(size_t module, const std::string& name) const {
    if (overlays_[module] == nullptr) return nullptr;
    for (const MergedAdapter& merged : overlays_[module]->adapters()) {
      if (merged.name == name) return &merged;
    }
    return nullptr;
  }

  static absl::Status CheckSame(const MergeAdapterRef& adapter, const MergedAdapter& merged,
                                const std::string& path) {
    const std::string& revision = (*adapter.handle)->revision();
    if (merged.revision == revision && merged.weight == adapter.weight) return absl::OkStatus();
    return Error(Reason::kMergedRevision,
                 fmt::format("adapter \"{}\" is merged into module {} at revision {} with weight "
                             "{}, not at {} with {}: unmerge it first",
                             adapter.name, Quoted(path), merged.revision, merged.weight, revision,
                             adapter.weight))
        .With("adapter", adapter.name)
        .With("module", Printable(path))
        .With("expected", merged.revision)
        .With("actual", revision);
  }

  // One adapter is merged at one revision, with one weight, wherever it is.
  absl::Status CheckElsewhere(const MergeAdapterRef& adapter) const {
    for (size_t module = 0; module < overlays_.size(); ++module) {
      const MergedAdapter* merged = FindMerged(module, adapter.name);
      if (merged == nullptr) continue;
      RETURN_IF_ERROR(CheckSame(adapter, *merged, base_->modules()[module].path));
    }
    return absl::OkStatus();
  }

  const std::shared_ptr<const HostedBase> base_;
  const BaseMergeRequest& request_;
  const Overlays overlays_;
  Changes changes_;
};

// Collects what an unmerge changes.
class Unmerge {
 public:
  Unmerge(const HostedBase& base, const BaseUnmergeRequest& request)
      : base_(base), request_(request), overlays_(base.overlays()) {}

  absl::StatusOr<Changes> Plan() {
    RETURN_IF_ERROR(CheckPatterns());
    if (request_.adapters.empty()) RETURN_IF_ERROR(Remove(nullptr));
    for (const BaseUnmergeRequest::Adapter& adapter : request_.adapters) {
      RETURN_IF_ERROR(Remove(&adapter));
    }
    return std::move(changes_);
  }

 private:
  absl::Status CheckPatterns() const {
    ASSIGN_OR_RETURN(ModulePatterns patterns, ModulePatterns::Compile(request_.modules));
    for (const HostedModule& module : base_.modules()) {
      RETURN_IF_ERROR(patterns.Match(module.path).status());
    }
    return patterns.CheckAllMatched();
  }

  // `adapter` null: all.
  absl::Status Remove(const BaseUnmergeRequest::Adapter* adapter) {
    ASSIGN_OR_RETURN(ModulePatterns patterns, ModulePatterns::Compile(request_.modules));
    const auto is_meant = [&](const MergedAdapter& merged) {
      if (adapter == nullptr) return true;
      return merged.name == adapter->name &&
             (adapter->revision.empty() || merged.revision == adapter->revision);
    };
    bool any = false;
    for (size_t module = 0; module < overlays_.size(); ++module) {
      if (overlays_[module] == nullptr) continue;
      const std::vector<MergedAdapter>& merged = overlays_[module]->adapters();
      if (std::none_of(merged.begin(), merged.end(), is_meant)) continue;
      ASSIGN_OR_RETURN(const bool wanted, patterns.Match(base_.modules()[module].path));
      if (!wanted) continue;
      any = true;
      std::erase_if(changes_.try_emplace(module, merged).first->second, is_meant);
    }
    if (request_.skip_unmerged || (any && patterns.CheckAllMatched().ok())) {
      return absl::OkStatus();
    }
    return NotMerged(adapter);
  }

  absl::Status NotMerged(const BaseUnmergeRequest::Adapter* adapter) const {
    const std::string where =
        request_.modules.empty() ? "the base model" : "all of the chosen modules";
    if (adapter == nullptr) {
      return Error(Reason::kNotMerged, fmt::format("nothing is merged into {}", where));
    }
    const std::string which =
        adapter->revision.empty() ? "" : fmt::format(" at revision {}", adapter->revision);
    return Error(Reason::kNotMerged,
                 fmt::format("adapter \"{}\" is not merged{} into {}", adapter->name, which, where))
        .With("adapter", adapter->name);
  }

  const HostedBase& base_;
  const BaseUnmergeRequest& request_;
  const Overlays overlays_;
  Changes changes_;
};

absl::StatusOr<BaseMergeResult> Apply(HostedBase& base, Changes changes, const MergeTools& tools,
                                      const Cancellation& cancellation) {
  BaseMergeResult result;
  std::vector<size_t> modules;
  Overlays overlays;
  RoundingStats sums;
  for (auto& [module, adapters] : changes) {
    RETURN_IF_ERROR(cancellation.Check());
    modules.push_back(module);
    overlays.emplace_back();
    if (adapters.empty()) continue;
    ASSIGN_OR_RETURN(overlays.back(), MakeOverlay(base.modules()[module], std::move(adapters),
                                                  tools, cancellation, sums));
    result.weight_bytes += static_cast<int64_t>(overlays.back()->weight().bytes().size());
  }
  base.Replace(modules, std::move(overlays));
  result.stats = Summarise(sums);
  return result;
}

}  // namespace

absl::StatusOr<BaseMergeResult> MergeIntoBase(const std::shared_ptr<HostedBase>& base,
                                              const BaseMergeRequest& request,
                                              const MergeTools& tools,
                                              const Cancellation& cancellation) {
  ASSIGN_OR_RETURN(Changes changes, Merge(base, request).Plan());
  return Apply(*base, std::move(changes), tools, cancellation);
}

absl::Status UnmergeFromBase(const std::shared_ptr<HostedBase>& base,
                             const BaseUnmergeRequest& request, const MergeTools& tools,
                             const Cancellation& cancellation) {
  ASSIGN_OR_RETURN(Changes changes, Unmerge(*base, request).Plan());
  return Apply(*base, std::move(changes), tools, cancellation).status();
}

}  // namespace adapterd
