// Opens what lies in the watched folder.
#ifndef ADAPTERD_CORE_CATALOG_WATCHED_SOURCE_H_
#define ADAPTERD_CORE_CATALOG_WATCHED_SOURCE_H_

#include <memory>

#include "core/adapter/adapter_reader.h"
#include "core/formats/renewable_roots.h"

namespace adapterd {

// An opener that looks for watched sources below `watched`, as it is at that moment, and leaves all
// others to `others`. `models` are where base checkpoints are.
AdapterOpener OpenWatchedAndOthers(std::shared_ptr<const RenewableRoots> watched,
                                   std::shared_ptr<const SourceRoots> models, AdapterOpener others);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_WATCHED_SOURCE_H_
