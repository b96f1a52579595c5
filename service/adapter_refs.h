// The adapters that one request names, and the module it means in each.
#ifndef ADAPTERD_SERVICE_ADAPTER_REFS_H_
#define ADAPTERD_SERVICE_ADAPTER_REFS_H_

#include <google/protobuf/repeated_field.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "adapterd/v1/adapter.pb.h"
#include "core/registry/adapter_handle.h"
#include "core/registry/registry_types.h"

namespace adapterd {

// Distinct references in the order they were first named. Not thread-safe.
class AdapterRefs {
 public:
  // One mention of an adapter: which distinct reference, and its weight.
  struct Use {
    size_t ref = 0;
    double weight = 1;
  };

  // `field` is what errors call it.
  absl::StatusOr<Use> Add(const v1::AdapterRef& ref, const std::string& field);

  const std::vector<AdapterRef>& refs() const { return refs_; }

 private:
  std::vector<AdapterRef> refs_;
};

// Where a module lies in an adapter.
struct ResolvedModule {
  size_t index = 0;
  const ModuleInfo* info = nullptr;
  int64_t pair = 0;  // the expert, of a module that holds several
};

// Finds `selector` in the adapter behind `handle`. Nullopt when that is empty, and when the module
// is not targeted and that is to be skipped; else MODULE_NOT_TARGETED. INVALID_FIELD for an expert
// that is missing, not there or not asked for. Errors name adapter and field.
absl::StatusOr<std::optional<ResolvedModule>> ResolveModule(const AdapterHandle& handle,
                                                            const AdapterRef& ref,
                                                            const ModuleSelector& selector,
                                                            const std::string& field,
                                                            bool skip_untargeted);

// Those of `refs` that are marked used, as replies list them: each name and revision once.
void AddUses(const std::vector<AdapterRef>& refs, const std::vector<AdapterHandle>& handles,
             const std::vector<bool>& used,
             google::protobuf::RepeatedPtrField<v1::AdapterUse>& out);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADAPTER_REFS_H_
