#include "service/adapter_changes.h"

#include "core/base/status_macros.h"
#include "service/adapter_convert.h"
#include "service/adapter_service.h"
#include "service/labels.h"
#include "service/reconcile.h"

namespace adapterd {
namespace {

// What the mask names; every field that is present when there is no mask.
struct UpdatedFields {
  bool enabled = false;
  bool pinned = false;
  bool labels = false;
};

absl::StatusOr<UpdatedFields> FieldsOf(const v1::UpdateAdapterRequest& request) {
  UpdatedFields fields;
  for (const std::string& path : request.update_mask().paths()) {
    bool* const field = path == "enabled"  ? &fields.enabled
                        : path == "pinned" ? &fields.pinned
                        : path == "labels" ? &fields.labels
                                           : nullptr;
    if (field == nullptr) return FieldError("update_mask", "enabled, pinned or labels", path);
    *field = true;
  }
  if (request.update_mask().paths().empty()) {
    fields.enabled = request.has_enabled();
    fields.pinned = request.has_pinned();
  }
  // An empty map cannot be told from none, so labels never change unasked.
  if (!fields.labels && !request.labels().empty()) {
    return FieldError("labels", "labels only together with an update_mask that names them",
                      std::to_string(request.labels().size()) + " labels");
  }
  return fields;
}

// Answers with the adapter after the change, with which a revision may have gone.
template <typename Response>
AdapterRegistry::Done<AdapterSnapshot> AnswerWithAdapter(ControlPlane& plane,
                                                         std::shared_ptr<RpcCall> call,
                                                         Response* response) {
  return [&plane, call = std::move(call), response](absl::StatusOr<AdapterSnapshot> adapter) {
    if (!call->Claim()) return;
    if (adapter.ok()) {
      plane.Released(0);
      ToProto(*adapter, v1::ADAPTER_VIEW_BASIC, *response->mutable_adapter());
    }
    call->Answer(adapter.status(), response);
  };
}

void Refuse(RpcCall& call, const absl::Status& status) {
  if (call.Claim()) call.Answer(status);
}

}  // namespace

absl::StatusOr<UpdateRequest> UpdateRequestFromProto(const v1::UpdateAdapterRequest& request) {
  RETURN_IF_ERROR(CheckAdapterName(request.name(), "name"));
  ASSIGN_OR_RETURN(const UpdatedFields fields, FieldsOf(request));
  UpdateRequest update;
  update.name = request.name();
  update.etag = request.etag();
  if (fields.enabled) update.enabled = !request.has_enabled() || request.enabled();
  if (fields.pinned) update.pinned = request.pinned();
  if (fields.labels) {
    ASSIGN_OR_RETURN(update.labels, LabelsFromProto(request.labels(), "labels"));
  }
  return update;
}

absl::Status CheckRollback(const v1::RollbackAdapterRequest& request) {
  RETURN_IF_ERROR(CheckAdapterName(request.name(), "name"));
  return CheckDigest(request.revision(), "revision");
}

absl::Status CheckAlias(const v1::SetAliasRequest& request) {
  RETURN_IF_ERROR(CheckAdapterName(request.name(), "name"));
  RETURN_IF_ERROR(CheckAdapterName(request.alias(), "alias"));
  if (request.revision().empty()) return absl::OkStatus();
  return CheckDigest(request.revision(), "revision");
}

grpc::ServerUnaryReactor* AdapterService::UpdateAdapter(grpc::CallbackServerContext* context,
                                                        const v1::UpdateAdapterRequest* request,
                                                        v1::UpdateAdapterResponse* response) {
  auto call = Start(update_, context, *request);
  if (call->answered()) return call.get();
  absl::StatusOr<UpdateRequest> update = UpdateRequestFromProto(*request);
  if (!update.ok()) {
    Refuse(*call, update.status());
    return call.get();
  }
  auto ticket =
      plane_.registry.Update(*std::move(update), AnswerWithAdapter(plane_, call, response));
  call->WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
  return call.get();
}

grpc::ServerUnaryReactor* AdapterService::RollbackAdapter(grpc::CallbackServerContext* context,
                                                          const v1::RollbackAdapterRequest* request,
                                                          v1::RollbackAdapterResponse* response) {
  auto call = Start(rollback_, context, *request);
  if (call->answered()) return call.get();
  if (const absl::Status status = CheckRollback(*request); !status.ok()) {
    Refuse(*call, status);
    return call.get();
  }
  auto ticket = plane_.registry.Rollback(request->name(), request->revision(),
                                         AnswerWithAdapter(plane_, call, response));
  call->WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
  return call.get();
}

grpc::ServerUnaryReactor* AdapterService::SetAlias(grpc::CallbackServerContext* context,
                                                   const v1::SetAliasRequest* request,
                                                   v1::SetAliasResponse* response) {
  auto call = Start(set_alias_, context, *request);
  if (call->answered()) return call.get();
  if (const absl::Status status = CheckAlias(*request); !status.ok()) {
    Refuse(*call, status);
    return call.get();
  }
  auto ticket = plane_.registry.SetAlias(request->name(), request->alias(), request->revision(),
                                         AnswerWithAdapter(plane_, call, response));
  call->WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
  return call.get();
}

grpc::ServerUnaryReactor* AdapterService::ReconcileAdapters(
    grpc::CallbackServerContext* context, const v1::ReconcileAdaptersRequest* request,
    v1::ReconcileAdaptersResponse* response) {
  auto call = Start(reconcile_, context, *request);
  if (call->answered()) return call.get();
  if (plane_.draining && !request->dry_run()) {
    Refuse(*call, Error(Reason::kDraining, "the server is shutting down"));
    return call.get();
  }
  plane_.control_pool.Submit(
      [this, call, request, response] { Reconcile(plane_, call, *request, *response); });
  return call.get();
}

grpc::ServerWriteReactor<v1::WatchAdaptersResponse>* AdapterService::WatchAdapters(
    grpc::CallbackServerContext* context, const v1::WatchAdaptersRequest* request) {
  const WatchPlane plane{plane_.environment, plane_.registry.events(), plane_.control_pool,
                         watchers_};
  return WatchCall::Start(plane, watch_, context, *request).get();
}

}  // namespace adapterd
