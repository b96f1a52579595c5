// The module that a Forward request means, in its base model and in its adapters.
#ifndef ADAPTERD_SERVICE_FORWARD_MODULE_H_
#define ADAPTERD_SERVICE_FORWARD_MODULE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base_model/hosted_base.h"
#include "core/compute/base_product.h"
#include "service/adapter_refs.h"
#include "service/forward_plan.h"

namespace adapterd {

// As it stands at one instant; what is viewed lives as long as the snapshot.
struct ForwardModule {
  ModuleSnapshot snapshot;
  StoredWeight weight;  // as it is merged now; of the expert that is meant
  MatrixView bias;      // [1, out_features]; without data: it has none
  double embedding_scale = 1;

  const std::string& path() const { return snapshot.module->path; }
  // The adapter of this name that is merged into it; null: none.
  const MergedAdapter* FindMerged(const std::string& name) const;
};

// INVALID_FIELD: a module that is no matrix, an expert that is missing, not there or not asked for,
// ids that are too large. MODULE_NOT_TARGETED: no such module. UNSUPPORTED_ADAPTER: a convolution
// of more than one element, or an embedding whose scale is not known. SHAPE_MISMATCH.
absl::StatusOr<ForwardModule> FindForwardModule(const ForwardPlan& plan, const HostedBase& base);

// The same module in an adapter; nullopt: not targeted, and that is to be skipped, or the handle is
// empty. Errors of ResolveModule; UNSUPPORTED_ADAPTER for one that counts replicated layers.
absl::StatusOr<std::optional<ResolvedModule>> FindInAdapter(const ForwardPlan& plan,
                                                            const ForwardModule& module,
                                                            const AdapterHandle& handle,
                                                            const AdapterRef& ref);

// How an adapter says that the weight lies, which may know better than the base; SHAPE_MISMATCH
// when the weight does not fit it. REQUIRES: not kReplacement.
absl::StatusOr<WeightLayout> LayoutFor(const ForwardModule& module, const ModuleInfo& info,
                                       bool fan_in_fan_out);

// A weight of `shape` at `data` as the matrix that one product takes, of the expert if it is asked
// for. INVALID_FIELD and UNSUPPORTED_ADAPTER as above.
absl::StatusOr<MatrixView> MatrixOfWeight(DType dtype, const Shape& shape, const std::byte* data,
                                          bool is_parameter, std::optional<int32_t> expert,
                                          const std::string& path);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_FORWARD_MODULE_H_
