#include "service/base_model_service.h"

#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"
#include "service/base_model_convert.h"
#include "service/field_error.h"
#include "service/merge_stats.h"
#include "service/stream_call.h"

namespace adapterd {
namespace {

constexpr char kService[] = "adapterd.v1.BaseModelService";

void Refuse(RpcCall& call, const absl::Status& status) {
  if (call.Claim()) call.Answer(status);
}

}  // namespace

BaseModelService::BaseModelService(ControlPlane& plane, HostedBases& bases)
    : plane_(plane),
      bases_(bases),
      load_(plane.environment.metrics.Rpc(kService, "LoadBaseModel")),
      unload_(plane.environment.metrics.Rpc(kService, "UnloadBaseModel")),
      list_(plane.environment.metrics.Rpc(kService, "ListBaseModels")),
      merge_(plane.environment.metrics.Rpc(kService, "MergeAdapter")),
      unmerge_(plane.environment.metrics.Rpc(kService, "UnmergeAdapter")),
      get_weight_(plane.environment.metrics.Rpc(kService, "GetBaseWeight")) {}

std::shared_ptr<RpcCall> BaseModelService::Start(RpcMetrics& metrics,
                                                 grpc::CallbackServerContext* context,
                                                 const google::protobuf::Message& request) {
  return RpcCall::Start(plane_.environment, metrics, Plane::kControl, context, request);
}

grpc::ServerUnaryReactor* BaseModelService::LoadBaseModel(grpc::CallbackServerContext* context,
                                                          const v1::LoadBaseModelRequest* request,
                                                          v1::LoadBaseModelResponse* response) {
  auto call = Start(load_, context, *request);
  if (call->answered()) return call.get();
  absl::StatusOr<BaseLoadRequest> load = BaseLoadFromProto(*request);
  if (load.ok() && plane_.draining) load = Error(Reason::kDraining, "the server is shutting down");
  if (!load.ok()) {
    Refuse(*call, load.status());
    return call.get();
  }
  plane_.io_pool.Submit([this, call, load = *std::move(load), response]() mutable {
    call->Run(*response, [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const NamedBase base, bases_.Load(load, call->cancellation()));
      ToProto(base, *response->mutable_base_model());
      return absl::OkStatus();
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* BaseModelService::UnloadBaseModel(
    grpc::CallbackServerContext* context, const v1::UnloadBaseModelRequest* request,
    v1::UnloadBaseModelResponse* response) {
  auto call = Start(unload_, context, *request);
  if (call->answered()) return call.get();
  if (absl::Status name = CheckAdapterName(request->name(), "name"); !name.ok()) {
    Refuse(*call, name);
    return call.get();
  }
  // Whoever does not wait any longer has unloaded it all the same.
  call->WhenCancelled(
      [call = call.get()] { Refuse(*call, absl::CancelledError("the caller gave up waiting")); });
  plane_.io_pool.Submit([this, call, name = request->name(), response] {
    const absl::Status status = bases_.Unload(name, [this, call, response](int64_t freed) {
      plane_.Released(freed);
      if (!call->Claim()) return;
      response->set_freed_bytes(freed);
      call->Answer(absl::OkStatus(), response);
    });
    if (!status.ok()) Refuse(*call, status);
  });
  return call.get();
}

grpc::ServerUnaryReactor* BaseModelService::ListBaseModels(grpc::CallbackServerContext* context,
                                                           const v1::ListBaseModelsRequest* request,
                                                           v1::ListBaseModelsResponse* response) {
  auto call = Start(list_, context, *request);
  if (call->answered()) return call.get();
  plane_.control_pool.Submit([this, call, response] {
    call->Run(*response, [&] {
      for (const NamedBase& base : bases_.List()) ToProto(base, *response->add_base_models());
      return call->CheckMessageSize("reply", static_cast<int64_t>(response->ByteSizeLong()));
    });
  });
  return call.get();
}

void BaseModelService::Merge(const std::shared_ptr<RpcCall>& call,
                             const v1::MergeAdapterRequest& request, BaseMergeRequest merge,
                             v1::MergeAdapterResponse& response) {
  const absl::Status status = bases_.Change(
      request.base_model(), [this, call, merge = std::move(merge), &response](
                                const NamedBase& base, const MergeTools& tools) mutable {
        call->Run(response, [&]() -> absl::Status {
          const BaseMergeRequest mine = std::move(merge);  // its handles go before the answer
          const absl::Time start = absl::Now();
          ASSIGN_OR_RETURN(const BaseMergeResult result,
                           MergeIntoBase(base.base, mine, tools, call->cancellation()));
          plane_.environment.metrics.Merge(absl::Now() - start, result.weight_bytes);
          FillStats(result.stats, *response.mutable_stats());
          ToProto(base, *response.mutable_base_model());
          return absl::OkStatus();
        });
      });
  if (!status.ok()) Refuse(*call, status);
}

grpc::ServerUnaryReactor* BaseModelService::MergeAdapter(grpc::CallbackServerContext* context,
                                                         const v1::MergeAdapterRequest* request,
                                                         v1::MergeAdapterResponse* response) {
  auto call = Start(merge_, context, *request);
  if (call->answered()) return call.get();
  absl::StatusOr<BaseMergePlan> plan = PlanBaseMerge(*request);
  absl::Status status = plan.status();
  if (status.ok()) status = bases_.Find(request->base_model()).status();
  if (!status.ok()) {
    Refuse(*call, status);
    return call.get();
  }
  auto ticket = plane_.registry.Acquire(
      plan->refs.refs(), /*skip_disabled=*/false,
      [this, call, request, response,
       plan = *plan](absl::StatusOr<std::vector<AdapterHandle>> handles) {
        if (!handles.ok()) return Refuse(*call, handles.status());
        Merge(call, *request, plan.Request(*request, *std::move(handles)), *response);
      });
  call->WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
  return call.get();
}

grpc::ServerUnaryReactor* BaseModelService::UnmergeAdapter(grpc::CallbackServerContext* context,
                                                           const v1::UnmergeAdapterRequest* request,
                                                           v1::UnmergeAdapterResponse* response) {
  auto call = Start(unmerge_, context, *request);
  if (call->answered()) return call.get();
  absl::StatusOr<BaseUnmergeRequest> unmerge = BaseUnmergeFromProto(*request);
  absl::Status status = unmerge.status();
  if (status.ok()) {
    status = bases_.Change(
        request->base_model(),
        [this, call, unmerge = *unmerge, response](const NamedBase& base, const MergeTools& tools) {
          call->Run(*response, [&]() -> absl::Status {
            RETURN_IF_ERROR(UnmergeFromBase(base.base, unmerge, tools, call->cancellation()));
            ToProto(base, *response->mutable_base_model());
            return absl::OkStatus();
          });
          plane_.Released(0);
        });
  }
  if (!status.ok()) Refuse(*call, status);
  return call.get();
}

grpc::ServerWriteReactor<v1::GetBaseWeightResponse>* BaseModelService::GetBaseWeight(
    grpc::CallbackServerContext* context, const v1::GetBaseWeightRequest* request) {
  using Call = StreamCall<v1::GetBaseWeightResponse>;
  auto call = Call::Start(plane_.environment, get_weight_, Plane::kControl, context, *request);
  if (call->answered()) return call.get();
  plane_.export_pool.Submit([this, call, request] {
    call->Run([&]() -> absl::Status {
      RETURN_IF_ERROR(CheckAdapterName(request->base_model(), "base_model"));
      ASSIGN_OR_RETURN(const NamedBase base, bases_.Find(request->base_model()));
      return WriteBaseWeight(base, *request,
                             [&](const auto& message) { return call->Write(message); });
    });
  });
  return call.get();
}

}  // namespace adapterd
