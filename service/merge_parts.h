// Which modules of its adapters a Merge request means.
#ifndef ADAPTERD_SERVICE_MERGE_PARTS_H_
#define ADAPTERD_SERVICE_MERGE_PARTS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "core/registry/module_merge.h"
#include "service/adapter_refs.h"

namespace adapterd {

// The parts of all adapters that target the module, which are marked `used`. Views references and
// handles, one for each.
absl::StatusOr<std::vector<MergePart>> ResolveMerge(const AdapterRefs& refs,
                                                    const std::vector<AdapterRefs::Use>& uses,
                                                    const ModuleSelector& selector,
                                                    bool skip_untargeted,
                                                    const std::vector<AdapterHandle>& handles,
                                                    std::vector<bool>& used);

// Of arithmetic that failed: tells the module, and the adapter when there is one alone.
absl::Status AboutMerge(const absl::Status& status, const AdapterRefs& refs,
                        const ModuleSelector& selector);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MERGE_PARTS_H_
