#include "service/adapter_service.h"

#include <malloc.h>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"
#include "service/adapter_export.h"
#include "service/adapter_listing.h"
#include "service/stream_call.h"

namespace adapterd {
namespace {

constexpr char kService[] = "adapterd.v1.AdapterService";

// Freed pages are worth returning to the system from this much on; it takes milliseconds.
constexpr int64_t kTrimBytes = int64_t{16} << 20;

void Refuse(RpcCall& call, const absl::Status& status) {
  if (call.Claim()) call.Answer(status);
}

absl::StatusOr<AdapterSnapshot> FindAdapter(const AdapterRegistry& registry,
                                            const v1::GetAdapterRequest& request) {
  RETURN_IF_ERROR(CheckAdapterName(request.name(), "name"));
  RETURN_IF_ERROR(CheckView(request.view()));
  return registry.Get(request.name());
}

bool WantsModules(const v1::GetAdapterRequest& request) {
  return request.has_module() || request.view() == v1::ADAPTER_VIEW_FULL;
}

absl::Status FillAdapter(const AdapterSnapshot& snapshot, const v1::GetAdapterRequest& request,
                         v1::Adapter& out) {
  if (!request.has_module()) {
    ToProto(snapshot, request.view(), out);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const ModuleSelector selector, SelectorFromProto(request.module(), "module"));
  if (snapshot.manifest == nullptr) {
    return Error(Reason::kAdapterFailed, "the modules of adapter \"" + snapshot.name +
                                             "\" are not known, found it in state " +
                                             v1::AdapterState_Name(ToProto(snapshot.state)))
        .With("adapter", snapshot.name);
  }
  const std::vector<size_t> found = snapshot.manifest->index.FindAll(selector);
  if (found.empty()) {
    return Error(Reason::kModuleNotTargeted,
                 "adapter \"" + snapshot.name + "\" does not target " + SelectorString(selector))
        .With("adapter", snapshot.name)
        .With("module", SelectorString(selector));
  }
  ToProto(snapshot, request.view(), out, &found);
  return absl::OkStatus();
}

// Of an evicted adapter: its source tells the modules. When that cannot be read, whoever asks for
// one of them is refused, and whoever asks for the adapter is told why there are none.
absl::Status FillEvicted(const AdapterRegistry& registry, AdapterSnapshot snapshot,
                         const v1::GetAdapterRequest& request, const Cancellation& cancellation,
                         v1::Adapter& out) {
  auto manifest = registry.ReadManifest(snapshot.name, snapshot.digest.revision, cancellation);
  RETURN_IF_ERROR(cancellation.Check());
  if (manifest.ok()) {
    snapshot.manifest = *std::move(manifest);
  } else if (request.has_module()) {
    return manifest.status();
  } else {
    snapshot.warnings.push_back("its modules are not known now: " +
                                std::string(manifest.status().message()));
  }
  return FillAdapter(snapshot, request, out);
}

// A source that cannot be opened is an error of the call, not a problem of an adapter; a base model
// that cannot be is one that was found.
bool MeansNotOpened(const Problem& problem) {
  if (problem.severity != Severity::kError || problem.field == "base_checkpoint") return false;
  return problem.reason == Reason::kPathOutsideRoot || problem.reason == Reason::kSourceNotFound ||
         problem.reason == Reason::kSourceUnavailable || problem.reason == Reason::kInvalidField;
}

absl::Status FillValidation(const ValidationResult& result, v1::ValidateAdapterResponse& out) {
  for (const Problem& problem : result.problems.items()) {
    if (MeansNotOpened(problem)) {
      ProblemList only;  // others may have been found first
      only.Add(problem);
      return only.ToStatus();
    }
  }
  out.set_valid(!result.problems.has_errors());
  for (const Problem& problem : result.problems.items()) ToProto(problem, *out.add_problems());
  out.set_memory_bytes(result.memory_bytes);
  out.set_fits(result.fits);
  for (const std::string& name : result.would_evict) out.add_would_evict(name);
  if (result.adapter && out.valid()) {
    ToProto(*result.adapter, v1::ADAPTER_VIEW_FULL, *out.mutable_adapter());
  }
  return absl::OkStatus();
}

}  // namespace

void ControlPlane::Released(int64_t freed_bytes) {
  if (freed_bytes >= kTrimBytes) {
    io_pool.Submit([] { malloc_trim(0); });
  }
  collector.Request([] {});
}

AdapterService::AdapterService(ControlPlane& plane)
    : plane_(plane),
      load_(plane.environment.metrics.Rpc(kService, "LoadAdapter")),
      upload_(plane.environment.metrics.Rpc(kService, "UploadAdapter")),
      validate_(plane.environment.metrics.Rpc(kService, "ValidateAdapter")),
      get_(plane.environment.metrics.Rpc(kService, "GetAdapter")),
      list_(plane.environment.metrics.Rpc(kService, "ListAdapters")),
      unload_(plane.environment.metrics.Rpc(kService, "UnloadAdapter")),
      tensors_(plane.environment.metrics.Rpc(kService, "GetAdapterTensors")),
      export_(plane.environment.metrics.Rpc(kService, "ExportAdapter")),
      create_(plane.environment.metrics.Rpc(kService, "CreateAdapter")),
      compose_(plane.environment.metrics.Rpc(kService, "ComposeAdapter")),
      update_tensors_(plane.environment.metrics.Rpc(kService, "UpdateAdapterTensors")),
      estimate_(plane.environment.metrics.Rpc(kService, "EstimateCapacity")),
      update_(plane.environment.metrics.Rpc(kService, "UpdateAdapter")),
      rollback_(plane.environment.metrics.Rpc(kService, "RollbackAdapter")),
      set_alias_(plane.environment.metrics.Rpc(kService, "SetAlias")),
      reconcile_(plane.environment.metrics.Rpc(kService, "ReconcileAdapters")),
      watch_(plane.environment.metrics.Rpc(kService, "WatchAdapters")),
      info_(plane.environment.metrics.Rpc(kService, "GetServerInfo")) {}

std::shared_ptr<RpcCall> AdapterService::Start(RpcMetrics& metrics,
                                               grpc::CallbackServerContext* context,
                                               const google::protobuf::Message& request) {
  return RpcCall::Start(plane_.environment, metrics, Plane::kControl, context, request);
}

grpc::ServerUnaryReactor* AdapterService::LoadAdapter(grpc::CallbackServerContext* context,
                                                      const v1::LoadAdapterRequest* request,
                                                      v1::LoadAdapterResponse* response) {
  auto call = Start(load_, context, *request);
  if (call->answered()) return call.get();
  absl::StatusOr<LoadRequest> load = LoadRequestFromProto(*request);
  if (load.ok() && plane_.draining) load = Error(Reason::kDraining, "the server is shutting down");
  if (!load.ok()) {
    Refuse(*call, load.status());
    return call.get();
  }
  auto ticket = plane_.registry.Load(
      *std::move(load), [this, call, request, response](absl::StatusOr<LoadResult> result) {
        if (!call->Claim()) return;
        if (result.ok()) {
          ToProto(result->adapter, request->view(), *response->mutable_adapter());
          response->set_already_loaded(result->already_loaded);
          response->set_replaced_revision(result->replaced_revision);
          for (const std::string& name : result->evicted) response->add_evicted(name);
          if (!result->replaced_revision.empty()) plane_.Released(0);
        }
        call->Answer(result.status(), response);
      });
  call->WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
  return call.get();
}

grpc::ServerUnaryReactor* AdapterService::ValidateAdapter(grpc::CallbackServerContext* context,
                                                          const v1::ValidateAdapterRequest* request,
                                                          v1::ValidateAdapterResponse* response) {
  auto call = Start(validate_, context, *request);
  if (call->answered()) return call.get();
  absl::StatusOr<LoadRequest> load = LoadRequestFromProto(*request);
  if (!load.ok()) {
    Refuse(*call, load.status());
    return call.get();
  }
  plane_.io_pool.Submit([this, call, response, load = *std::move(load)] {
    call->Run(*response, [&]() -> absl::Status {
      const ValidationResult result = plane_.registry.Validate(load, call->cancellation());
      RETURN_IF_ERROR(call->cancellation().Check());
      return FillValidation(result, *response);
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* AdapterService::GetAdapter(grpc::CallbackServerContext* context,
                                                     const v1::GetAdapterRequest* request,
                                                     v1::GetAdapterResponse* response) {
  auto call = Start(get_, context, *request);
  if (call->answered()) return call.get();
  plane_.control_pool.Submit([this, call, request, response] {
    absl::StatusOr<AdapterSnapshot> snapshot = FindAdapter(plane_.registry, *request);
    if (snapshot.ok() && snapshot->state == AdapterState::kEvicted && WantsModules(*request)) {
      plane_.io_pool.Submit([this, call, request, response, snapshot = *std::move(snapshot)] {
        call->Run(*response, [&] {
          return FillEvicted(plane_.registry, snapshot, *request, call->cancellation(),
                             *response->mutable_adapter());
        });
      });
      return;
    }
    call->Run(*response, [&]() -> absl::Status {
      RETURN_IF_ERROR(snapshot.status());
      return FillAdapter(*snapshot, *request, *response->mutable_adapter());
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* AdapterService::ListAdapters(grpc::CallbackServerContext* context,
                                                       const v1::ListAdaptersRequest* request,
                                                       v1::ListAdaptersResponse* response) {
  auto call = Start(list_, context, *request);
  if (call->answered()) return call.get();
  plane_.control_pool.Submit([this, call, request, response] {
    call->Run(*response, [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const ListingPage page, ReadListing(*request));
      FillListing(page, plane_.registry.List(page.query), plane_.registry.totals(), request->view(),
                  *response);
      return absl::OkStatus();
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* AdapterService::UnloadAdapter(grpc::CallbackServerContext* context,
                                                        const v1::UnloadAdapterRequest* request,
                                                        v1::UnloadAdapterResponse* response) {
  auto call = Start(unload_, context, *request);
  if (call->answered()) return call.get();
  if (absl::Status status = CheckAdapterName(request->name(), "name"); !status.ok()) {
    Refuse(*call, status);
    return call.get();
  }
  UnloadRequest unload{request->name(), request->revision(), request->force(),
                       !request->has_wait() || request->wait()};
  const bool allow_missing = request->allow_missing();
  auto ticket = plane_.registry.Unload(std::move(unload), [this, call, response, allow_missing](
                                                              absl::StatusOr<UnloadResult> result) {
    // A call that was given up may be over, and the server with it: the next release clears away.
    if (!call->Claim()) return;
    if (result.ok()) plane_.Released(result->freed_bytes);
    absl::Status status = result.status();
    if (result.ok()) {
      response->set_freed_bytes(result->freed_bytes);
      response->set_freed(result->freed);
    } else if (allow_missing && GetErrorDetails(status).reason == Reason::kAdapterNotFound) {
      status = absl::OkStatus();  // nothing was freed
    }
    call->Answer(status, response);
  });
  // The name is gone already when the memory is waited for: then only the answer is given up.
  call->WhenCancelled([this, call, ticket] {
    plane_.registry.Cancel(ticket);
    if (call->Claim()) call->Answer(absl::CancelledError("the caller went away"));
  });
  return call.get();
}

grpc::ServerUnaryReactor* AdapterService::GetAdapterTensors(
    grpc::CallbackServerContext* context, const v1::GetAdapterTensorsRequest* request,
    v1::GetAdapterTensorsResponse* response) {
  auto call = Start(tensors_, context, *request);
  if (call->answered()) return call.get();
  if (absl::Status status = CheckAdapterName(request->name(), "name"); !status.ok()) {
    Refuse(*call, status);
    return call.get();
  }
  auto ticket = plane_.registry.Acquire(
      {{request->name(), ""}}, /*skip_disabled=*/false,
      [this, call, request, response](absl::StatusOr<std::vector<AdapterHandle>> handles) {
        // Unpacking takes a moment: not on the thread of whoever ended the wait.
        plane_.io_pool.Submit([call, request, response, handles = std::move(handles)]() mutable {
          call->Run(*response, [&]() -> absl::Status {
            RETURN_IF_ERROR(handles.status());
            const AdapterHandle handle = std::move(handles->front());
            return FillTensors(*call, *request, handle, *response);
          });
        });
      });
  call->WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
  return call.get();
}

grpc::ServerWriteReactor<v1::ExportAdapterResponse>* AdapterService::ExportAdapter(
    grpc::CallbackServerContext* context, const v1::ExportAdapterRequest* request) {
  using Call = StreamCall<v1::ExportAdapterResponse>;
  auto call = Call::Start(plane_.environment, export_, Plane::kControl, context, *request);
  if (call->answered()) return call.get();
  if (const absl::Status checked = CheckExport(*request); !checked.ok()) {
    call->Run([&] { return checked; });
    return call.get();
  }
  auto ticket = plane_.registry.Acquire(
      {{request->name(), ""}}, /*skip_disabled=*/false,
      [this, call, asked = *request](absl::StatusOr<std::vector<AdapterHandle>> handles) {
        plane_.export_pool.Submit([call, asked, handles = std::move(handles)]() mutable {
          call->Run([&]() -> absl::Status {
            RETURN_IF_ERROR(handles.status());
            const AdapterHandle handle = std::move(handles->front());
            return WriteExport(asked, handle,
                               [&](const auto& message) { return call->Write(message); });
          });
        });
      });
  call->WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
  return call.get();
}

grpc::ServerUnaryReactor* AdapterService::GetServerInfo(grpc::CallbackServerContext* context,
                                                        const v1::GetServerInfoRequest* request,
                                                        v1::GetServerInfoResponse* response) {
  auto call = Start(info_, context, *request);
  if (call->answered()) return call.get();
  *response = plane_.info;
  response->set_memory_budget_bytes(plane_.registry.budget().limit());
  if (call->Claim()) call->Answer(absl::OkStatus(), response);
  return call.get();
}

}  // namespace adapterd
