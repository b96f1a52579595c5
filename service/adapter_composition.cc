#include "service/adapter_composition.h"

#include <fmt/format.h>

#include <memory>
#include <string>
#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/compose/composition.h"
#include "service/adapter_service.h"
#include "service/field_error.h"
#include "service/stored_load.h"

namespace adapterd {
namespace {

absl::StatusOr<ComposeMethod> MethodFromProto(v1::ComposeMethod method) {
  switch (method) {
    case v1::COMPOSE_METHOD_LINEAR:
      return ComposeMethod::kLinear;
    case v1::COMPOSE_METHOD_CAT:
      return ComposeMethod::kCat;
    case v1::COMPOSE_METHOD_SVD:
      return ComposeMethod::kSvd;
    case v1::COMPOSE_METHOD_TIES:
      return ComposeMethod::kTies;
    case v1::COMPOSE_METHOD_TIES_SVD:
      return ComposeMethod::kTiesSvd;
    case v1::COMPOSE_METHOD_DARE_LINEAR:
      return ComposeMethod::kDareLinear;
    case v1::COMPOSE_METHOD_DARE_TIES:
      return ComposeMethod::kDareTies;
    case v1::COMPOSE_METHOD_DARE_LINEAR_SVD:
      return ComposeMethod::kDareLinearSvd;
    case v1::COMPOSE_METHOD_DARE_TIES_SVD:
      return ComposeMethod::kDareTiesSvd;
    case v1::COMPOSE_METHOD_MAGNITUDE_PRUNE:
      return ComposeMethod::kMagnitudePrune;
    case v1::COMPOSE_METHOD_MAGNITUDE_PRUNE_SVD:
      return ComposeMethod::kMagnitudePruneSvd;
    default:
      return FieldError("method", "one of the compose methods",
                        v1::ComposeMethod_IsValid(method) ? "COMPOSE_METHOD_UNSPECIFIED"
                                                          : std::to_string(method));
  }
}

absl::StatusOr<SignElection> ElectionFromProto(v1::MajoritySign sign) {
  switch (sign) {
    case v1::MAJORITY_SIGN_UNSPECIFIED:
    case v1::MAJORITY_SIGN_TOTAL:
      return SignElection::kTotal;
    case v1::MAJORITY_SIGN_FREQUENCY:
      return SignElection::kFrequency;
    default:
      return FieldError("majority_sign", "TOTAL or FREQUENCY", std::to_string(sign));
  }
}

using SharedHandles = std::shared_ptr<const std::vector<AdapterHandle>>;

absl::StatusOr<SharedHandles> Share(absl::StatusOr<std::vector<AdapterHandle>> acquired) {
  RETURN_IF_ERROR(acquired.status());
  return std::make_shared<const std::vector<AdapterHandle>>(*std::move(acquired));
}

std::vector<ComposeInput> InputsOf(const ComposePlan& plan, const SharedHandles& handles) {
  std::vector<ComposeInput> inputs;
  for (const AdapterRefs::Use& use : plan.uses) {
    const AdapterHandle& handle = (*handles)[use.ref];
    ComposeInput& input = inputs.emplace_back();
    input.name = plan.adapters.refs()[use.ref].name;
    input.manifest = std::shared_ptr<const AdapterManifest>(handles, &handle.manifest());
    input.weight = use.weight;
    input.pair = [handles, &handle](size_t module) {
      PairFactors factors = handle->Factors(module, 0);
      return StoredPair{std::move(factors.lora_a), std::move(factors.lora_b)};
    };
  }
  return inputs;
}

// Computes each module when the first of its tensors is asked for, and tells its singular values
// when the last is.
absl::StatusOr<MadeAdapter> MakeComposition(ControlPlane& plane, const ComposePlan& plan,
                                            const SharedHandles& handles,
                                            const Cancellation& cancellation,
                                            v1::ComposeAdapterResponse& response) {
  ASSIGN_OR_RETURN(
      std::shared_ptr<Composition> composition,
      Composition::Plan(plan.spec, InputsOf(plan, handles), plane.kernels, plane.io_pool));
  MadeAdapter made;
  made.manifest = composition->manifest();
  made.tensors = [composition, cancellation, &response](size_t module,
                                                        TensorRole role) -> absl::StatusOr<Tensor> {
    ASSIGN_OR_RETURN(Tensor tensor, composition->Take(module, role, cancellation));
    const std::string& path = composition->manifest()->modules[module].path;
    const auto values = composition->singular_values().find(path);
    if (role == TensorRole::kLoraB && values != composition->singular_values().end()) {
      v1::SingularValues& out = *response.add_singular_values();
      out.set_path(path);
      out.mutable_values()->Add(values->second.begin(), values->second.end());
    }
    return tensor;
  };
  return made;
}

}  // namespace

absl::StatusOr<ComposePlan> PlanCompose(const v1::ComposeAdapterRequest& request) {
  RETURN_IF_ERROR(CheckAdapterName(request.name(), "name"));
  ComposePlan plan;
  ASSIGN_OR_RETURN(plan.spec.method, MethodFromProto(request.method()));
  ASSIGN_OR_RETURN(plan.spec.majority_sign, ElectionFromProto(request.majority_sign()));
  plan.spec.density = request.density();
  plan.spec.rank = request.rank();
  if (request.has_svd_clamp()) plan.spec.svd_clamp = request.svd_clamp();
  plan.spec.seed = request.seed();
  if (static_cast<size_t>(request.adapters_size()) > kMaxComposeInputs) {
    return FieldError("adapters", fmt::format("at most {}", kMaxComposeInputs),
                      std::to_string(request.adapters_size()));
  }
  for (int i = 0; i < request.adapters_size(); ++i) {
    const std::string field = fmt::format("adapters[{}]", i);
    ASSIGN_OR_RETURN(const AdapterRefs::Use use, plan.adapters.Add(request.adapters(i), field));
    plan.uses.push_back(use);
    if (plan.adapters.refs()[use.ref].name != request.name()) continue;
    return FieldError("name", "another name than those of the adapters that are mixed",
                      request.name());
  }
  return plan;
}

grpc::ServerUnaryReactor* AdapterService::ComposeAdapter(grpc::CallbackServerContext* context,
                                                         const v1::ComposeAdapterRequest* request,
                                                         v1::ComposeAdapterResponse* response) {
  auto call = Start(compose_, context, *request);
  if (call->answered()) return call.get();
  absl::StatusOr<ComposePlan> plan = PlanCompose(*request);
  if (const absl::Status store = CheckStore(plane_); plan.ok() && !store.ok()) plan = store;
  if (!plan.ok()) {
    if (call->Claim()) call->Answer(plan.status());
    return call.get();
  }
  std::vector<AdapterRef> refs = plan->adapters.refs();
  auto ticket = plane_.registry.Acquire(
      std::move(refs), /*skip_disabled=*/false,
      [this, call, request, response,
       plan = *std::move(plan)](absl::StatusOr<std::vector<AdapterHandle>> acquired) mutable {
        absl::StatusOr<SharedHandles> handles = Share(std::move(acquired));
        LoadRequest load;
        load.name = request->name();
        load.keep_options = true;
        ServeMade(plane_, call, std::move(load), response,
                  [this, call, response, plan = std::move(plan),
                   handles = std::move(handles)]() mutable -> absl::StatusOr<MadeAdapter> {
                    RETURN_IF_ERROR(handles.status());
                    return MakeComposition(plane_, plan, *handles, call->cancellation(), *response);
                  });
      });
  call->WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
  return call.get();
}

}  // namespace adapterd
