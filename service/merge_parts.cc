#include "service/merge_parts.h"

#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {

absl::StatusOr<std::vector<MergePart>> ResolveMerge(const AdapterRefs& refs,
                                                    const std::vector<AdapterRefs::Use>& uses,
                                                    const ModuleSelector& selector,
                                                    bool skip_untargeted,
                                                    const std::vector<AdapterHandle>& handles,
                                                    std::vector<bool>& used) {
  std::vector<MergePart> parts;
  for (const AdapterRefs::Use& use : uses) {
    const AdapterRef& ref = refs.refs()[use.ref];
    ASSIGN_OR_RETURN(auto module,
                     ResolveModule(handles[use.ref], ref, selector, "module", skip_untargeted));
    if (!module) continue;
    used[use.ref] = true;
    parts.push_back({ref.name, &handles[use.ref], module->index, module->pair, use.weight});
  }
  RETURN_IF_ERROR(CheckAlone(parts));
  return parts;
}

absl::Status AboutMerge(const absl::Status& status, const AdapterRefs& refs,
                        const ModuleSelector& selector) {
  const absl::Status told = Annotate(status, "module", SelectorString(selector));
  return refs.refs().size() == 1 ? Annotate(told, "adapter", refs.refs()[0].name) : told;
}

}  // namespace adapterd
