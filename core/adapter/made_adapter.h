// An adapter whose numbers were made in this process instead of read from files.
#ifndef ADAPTERD_CORE_ADAPTER_MADE_ADAPTER_H_
#define ADAPTERD_CORE_ADAPTER_MADE_ADAPTER_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/adapter/adapter.h"
#include "core/adapter/peft_export.h"

namespace adapterd {

// More than any model has; each costs about a kilobyte of names.
inline constexpr size_t kMaxMadeModules = 100'000;

// What is made is known before it is made: the manifest says all shapes, so that room can be asked
// for first. Movable, and usable from one thread at a time.
struct MadeAdapter {
  std::shared_ptr<const AdapterManifest> manifest;
  // Called once for each tensor of the manifest, in the order of the file: those of a module follow
  // each other unless their types differ.
  TensorLookup tensors;
};

// INVALID_FIELD unless a PEFT file can say `path` and means the same by it: 1 to 64 components
// without control characters, none of which has a meaning of its own there ("lora_A",
// "base_layer"). `field` is what errors call it.
absl::Status CheckModulePath(std::string_view path, const std::string& field);

// The manifest of pairs that have path, kind, shapes, alpha and types: fills in scales (alpha /
// rank, with rsLoRA alpha / sqrt(rank)), names of tensors, method and index, and sorts by path.
// REQUIRES: paths that CheckModulePath accepts, no two equal.
AdapterManifest ManifestOfPairs(std::vector<ModuleInfo> pairs, bool use_rslora);

}  // namespace adapterd

#endif  // ADAPTERD_CORE_ADAPTER_MADE_ADAPTER_H_
