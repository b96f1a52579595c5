#include "service/merge_parts.h"

#include "core/base/status_macros.h"

namespace adapterd {

absl::StatusOr<std::vector<MergePart>> ResolveMerge(const MergePlan& plan,
                                                    const std::vector<AdapterHandle>& handles,
                                                    std::vector<bool>& used) {
  std::vector<MergePart> parts;
  for (const AdapterRefs::Use& use : plan.uses) {
    const AdapterRef& ref = plan.adapters.refs()[use.ref];
    ASSIGN_OR_RETURN(auto module, ResolveModule(handles[use.ref], ref, plan.selector, "module",
                                                plan.skip_untargeted));
    if (!module) continue;
    used[use.ref] = true;
    parts.push_back({ref.name, &handles[use.ref], module->index, module->pair, use.weight});
  }
  RETURN_IF_ERROR(CheckAlone(parts));
  return parts;
}

}  // namespace adapterd
