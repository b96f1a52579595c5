#include "service/capacity.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "core/adapter/base_model_geometry.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"
#include "service/adapter_creation.h"
#include "service/adapter_service.h"
#include "service/field_error.h"

namespace adapterd {
namespace {

// What one adapter takes.
struct Need {
  int64_t bytes = 0;
  int64_t parameters = 0;
};

absl::Status CheckNotNegative(int64_t value, const std::string& field) {
  if (value >= 0) return absl::OkStatus();
  return FieldError(field, "0 or more", std::to_string(value));
}

absl::StatusOr<Need> NeedOfPairs(const AdapterRegistry& registry,
                                 const v1::EstimateCapacityRequest& request,
                                 std::vector<ModuleInfo> modules) {
  ASSIGN_OR_RETURN(const DType dtype, FactorTypeFromProto(request.dtype()));
  RETURN_IF_ERROR(CheckNotNegative(request.rank(), "rank"));
  int64_t most = kMaxGeometrySize;
  for (ModuleInfo& module : modules) {
    most = std::min({most, module.in_features, module.out_features});
    module.rank = request.rank();
    module.lora_a_dtype = module.lora_b_dtype = dtype;
  }
  if (modules.empty() || most == 0 || request.rank() == 0) return Need();
  if (request.rank() > most) {
    return FieldError("rank", fmt::format("at most {}, the smaller side of a module", most),
                      std::to_string(request.rank()));
  }
  const AdapterManifest manifest = ManifestOfPairs(std::move(modules), /*use_rslora=*/false);
  // First the bytes: they are checked for overflow, and there are more of them than parameters.
  ASSIGN_OR_RETURN(const int64_t bytes, registry.BytesFor(manifest));
  return Need{bytes, manifest.parameter_count()};
}

absl::StatusOr<Need> NeedOfMatrix(const AdapterRegistry& registry,
                                  const v1::EstimateCapacityRequest& request) {
  ModuleInfo module;
  module.path = "matrix";
  module.in_features = request.matrix().in_features();
  module.out_features = request.matrix().out_features();
  for (const auto& [field, size] : {std::pair("matrix.in_features", module.in_features),
                                    std::pair("matrix.out_features", module.out_features)}) {
    if (size >= 0 && size <= kMaxGeometrySize) continue;
    return FieldError(field, fmt::format("0 to {}", kMaxGeometrySize), std::to_string(size));
  }
  return NeedOfPairs(registry, request, {std::move(module)});
}

absl::StatusOr<Need> NeedOfGeometry(const AdapterRegistry& registry,
                                    const v1::EstimateCapacityRequest& request) {
  ASSIGN_OR_RETURN(std::vector<ModuleInfo> modules,
                   ModulesOf(GeometryFromProto(request.geometry()),
                             TargetsFromProto(request.target_modules()), ZeroSizes::kAllowed));
  return NeedOfPairs(registry, request, std::move(modules));
}

// Of its current revision, in memory or not.
absl::StatusOr<Need> NeedOfAdapter(const AdapterRegistry& registry, const v1::AdapterRef& message) {
  ASSIGN_OR_RETURN(AdapterRef ref, RefFromProto(message, "adapter"));
  ASSIGN_OR_RETURN(const AdapterSnapshot adapter, registry.Get(ref.name));
  if (!ref.alias.empty()) {
    const auto alias = adapter.aliases.find(ref.alias);
    if (alias == adapter.aliases.end()) {
      return Error(Reason::kAdapterNotFound,
                   fmt::format("adapter \"{}\" has no alias \"{}\"", ref.name, ref.alias))
          .With("adapter", ref.name);
    }
    ref.revision = alias->second;
  }
  if (!ref.revision.empty() && ref.revision != adapter.digest.revision) {
    return Error(Reason::kRevisionMismatch,
                 fmt::format("adapter \"{}\" is at revision {}, not {}: what others need is not "
                             "estimated",
                             ref.name, adapter.digest.revision, ref.revision))
        .With("adapter", ref.name)
        .With("expected", ref.revision)
        .With("actual", adapter.digest.revision);
  }
  if (adapter.description != nullptr) {
    return Need{adapter.load_bytes, adapter.description->parameter_count};
  }
  const bool is_loading = adapter.state == AdapterState::kLoading;
  return Error(is_loading ? Reason::kAdapterNotFound : Reason::kAdapterFailed,
               fmt::format("adapter \"{}\" is {}: what it needs is not known", ref.name,
                           is_loading ? "loading for the first time" : "FAILED"))
      .With("adapter", ref.name);
}

absl::StatusOr<Need> NeedOf(const AdapterRegistry& registry,
                            const v1::EstimateCapacityRequest& request) {
  switch (request.subject_case()) {
    case v1::EstimateCapacityRequest::kAdapter:
      return NeedOfAdapter(registry, request.adapter());
    case v1::EstimateCapacityRequest::kMatrix:
      return NeedOfMatrix(registry, request);
    case v1::EstimateCapacityRequest::kGeometry:
      return NeedOfGeometry(registry, request);
    default:
      return FieldError("subject", "adapter, matrix or geometry", "none");
  }
}

}  // namespace

absl::Status FillCapacity(const AdapterRegistry& registry,
                          const v1::EstimateCapacityRequest& request,
                          v1::EstimateCapacityResponse& response) {
  const int64_t budget =
      request.has_budget_bytes() ? request.budget_bytes() : registry.budget().limit();
  RETURN_IF_ERROR(CheckNotNegative(budget, "budget_bytes"));
  RETURN_IF_ERROR(CheckNotNegative(request.base_parameter_count(), "base_parameter_count"));
  ASSIGN_OR_RETURN(const Need need, NeedOf(registry, request));
  response.set_bytes_per_adapter(need.bytes);
  response.set_parameter_count(need.parameters);
  if (need.bytes > 0) response.set_adapters_that_fit(budget / need.bytes);
  if (request.base_parameter_count() > 0) {
    response.set_efficiency_ratio(static_cast<double>(need.parameters) /
                                  static_cast<double>(request.base_parameter_count()));
  }
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* AdapterService::EstimateCapacity(
    grpc::CallbackServerContext* context, const v1::EstimateCapacityRequest* request,
    v1::EstimateCapacityResponse* response) {
  auto call = Start(estimate_, context, *request);
  if (call->answered()) return call.get();
  plane_.control_pool.Submit([this, call, request, response] {
    call->Run(*response, [&] { return FillCapacity(plane_.registry, *request, *response); });
  });
  return call.get();
}

}  // namespace adapterd
