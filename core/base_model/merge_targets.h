// Which modules of a base model in memory an adapter acts on.
#ifndef ADAPTERD_CORE_BASE_MODEL_MERGE_TARGETS_H_
#define ADAPTERD_CORE_BASE_MODEL_MERGE_TARGETS_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base_model/hosted_base.h"

namespace adapterd {

// Where one of the base's modules lies in an adapter.
struct AdapterTarget {
  size_t module = 0;                       // of the adapter; of one path's two, the pair
  BaseLayout layout = BaseLayout::kOutIn;  // of the base's weight, as the adapter sees it
};

struct AdapterTargets {
  std::map<size_t, AdapterTarget> found;  // by module of the base
  std::vector<std::string> missing;       // paths that the base does not hold
};

// `name` is the adapter's, for errors. Reads no weight. Pure; costs some binary searches a module.
//
// SHAPE_MISMATCH: a weight or bias of another shape. UNSUPPORTED_ADAPTER: layer_replication; one
// weight that is meant twice; as BindToBase. BASE_MODEL_MISMATCH: as BindToBase. INVALID_FIELD:
// more than one module of the base may be meant.
absl::StatusOr<AdapterTargets> FindTargets(const std::string& name, const AdapterManifest& manifest,
                                           const std::shared_ptr<const HostedBase>& base);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_BASE_MODEL_MERGE_TARGETS_H_
