// The digest that tells apart what the revision does not: see RevisionRecord::derived_digest.
#ifndef ADAPTERD_CORE_REGISTRY_DERIVED_DIGEST_H_
#define ADAPTERD_CORE_REGISTRY_DERIVED_DIGEST_H_

#include <string>
#include <vector>

#include "core/registry/loaded_adapter.h"

namespace adapterd {

// SHA-256, 64 hex digits, over how each module is understood (kind, shapes, experts, token ids, the
// parameter it stands for, the heads its rows are ordered by) and what came from the base model
// (embedding scale, DoRA's gains and biases, bit by bit). Two loads of one revision with equal
// digests compute the same numbers. `extras` has one element a module.
std::string DerivedDigest(const AdapterManifest& manifest, const std::vector<ModuleExtras>& extras);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_REGISTRY_DERIVED_DIGEST_H_
