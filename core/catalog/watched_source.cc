#include "core/catalog/watched_source.h"

#include <utility>

namespace adapterd {

AdapterOpener OpenWatchedAndOthers(std::shared_ptr<const RenewableRoots> watched,
                                   std::shared_ptr<const SourceRoots> models,
                                   AdapterOpener others) {
  return [watched = std::move(watched), models = std::move(models), others = std::move(others)](
             const SourceSpec& spec, ProblemList& problems) {
    return spec.watched ? OpenFromRoots(watched->Get(), models)(spec, problems)
                        : others(spec, problems);
  };
}

}  // namespace adapterd
