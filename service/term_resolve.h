// One module in one adapter of a request for projections.
#ifndef ADAPTERD_SERVICE_TERM_RESOLVE_H_
#define ADAPTERD_SERVICE_TERM_RESOLVE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/compute/projection.h"
#include "core/registry/adapter_handle.h"
#include "service/adapter_refs.h"
#include "service/input_plan.h"

namespace adapterd {

// What it adds to the module's output.
struct ResolvedTerm {
  ResolvedModule module;
  const PackedPair* pair = nullptr;  // null: of no rank, adds nothing
  const float* bias = nullptr;       // B's own
  std::optional<DoraRescale> dora;   // of an adapter that is DoRA there
  double factor = 1;                 // on the delta, without the request's weight
};

// Everything but `dora`. Packs what was not needed in this dtype before. `embedding_scale` is what
// the base model multiplies embeddings by, if that is known.
// SHAPE_MISMATCH, INVALID_FIELD, UNSUPPORTED_DTYPE, UNSUPPORTED_ADAPTER for convolutions,
// BASE_REQUIRED without a scale, MEMORY_BUDGET_EXCEEDED. REQUIRES: not kReplacement.
absl::StatusOr<ResolvedTerm> ResolveTerm(const InputPlan& plan, const ResolvedModule& found,
                                         const AdapterRef& ref, const LoadedAdapter& adapter,
                                         std::optional<double> embedding_scale);

// INVALID_FIELD for a term of DoRA, which rescales what the base model and nobody else puts out,
// with another weight than 1 or beside other terms of its segment.
absl::Status CheckDora(const ResolvedTerm& term, double weight, size_t terms,
                       const std::string& field, const AdapterRef& ref);

// UNSUPPORTED_DTYPE unless the request has ids for `path` exactly when that is an embedding;
// INVALID_FIELD for an id that is not below `ids`.
absl::Status CheckInputKind(const InputPlan& plan, bool is_embedding, const std::string& path);
absl::Status CheckIds(std::span<const int64_t> values, int64_t ids, const std::string& path);

// SHAPE_MISMATCH unless the two agree. `what` is "in_features" or "out_features".
absl::Status CheckWidth(const char* what, int64_t expected, int64_t actual,
                        const std::string& field, const AdapterRef& ref, const ModuleInfo& info);

// Tells field, adapter and module.
absl::Status AboutModule(absl::Status status, const std::string& field, const AdapterRef& ref,
                         const ModuleInfo& info);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_TERM_RESOLVE_H_
