// The control plane: AdapterService of the API.
#ifndef ADAPTERD_SERVICE_ADAPTER_SERVICE_H_
#define ADAPTERD_SERVICE_ADAPTER_SERVICE_H_

#include <atomic>

#include "adapterd/v1/adapter_service.grpc.pb.h"
#include "core/base/thread_pool.h"
#include "core/catalog/content_store.h"
#include "core/registry/adapter_registry.h"
#include "service/content_collector.h"
#include "service/rpc_call.h"
#include "service/watch_call.h"

namespace adapterd {

// All of it outlives the service.
struct ControlPlane {
  RpcEnvironment& environment;
  AdapterRegistry& registry;
  const Kernels& kernels;
  ThreadPool& io_pool;                    // reads files
  ThreadPool& control_pool;               // builds listings; never waits
  ThreadPool& export_pool;                // writes exports; waits for clients
  ThreadPool& making_pool;                // makes adapters, which may take minutes
  const v1::GetServerInfoResponse& info;  // constant
  const std::atomic<bool>& draining;
  ContentStore* content;  // of uploads; null: there is no folder to write to
  ContentCollector& collector;
  const int64_t max_upload_bytes;

  // To be told when revisions went, and how many bytes were freed by it: what was uploaded for them
  // is removed, and memory goes back to the system. Hands over to other threads.
  void Released(int64_t freed_bytes);
};

// Handlers run on gRPC's threads and only check and hand over.
class AdapterService final : public v1::AdapterService::CallbackService {
 public:
  explicit AdapterService(ControlPlane& plane);

  grpc::ServerUnaryReactor* LoadAdapter(grpc::CallbackServerContext* context,
                                        const v1::LoadAdapterRequest* request,
                                        v1::LoadAdapterResponse* response) override;
  grpc::ServerReadReactor<v1::UploadAdapterRequest>* UploadAdapter(
      grpc::CallbackServerContext* context, v1::UploadAdapterResponse* response) override;
  grpc::ServerUnaryReactor* ValidateAdapter(grpc::CallbackServerContext* context,
                                            const v1::ValidateAdapterRequest* request,
                                            v1::ValidateAdapterResponse* response) override;
  grpc::ServerUnaryReactor* GetAdapter(grpc::CallbackServerContext* context,
                                       const v1::GetAdapterRequest* request,
                                       v1::GetAdapterResponse* response) override;
  grpc::ServerUnaryReactor* ListAdapters(grpc::CallbackServerContext* context,
                                         const v1::ListAdaptersRequest* request,
                                         v1::ListAdaptersResponse* response) override;
  grpc::ServerUnaryReactor* UnloadAdapter(grpc::CallbackServerContext* context,
                                          const v1::UnloadAdapterRequest* request,
                                          v1::UnloadAdapterResponse* response) override;
  grpc::ServerUnaryReactor* GetAdapterTensors(grpc::CallbackServerContext* context,
                                              const v1::GetAdapterTensorsRequest* request,
                                              v1::GetAdapterTensorsResponse* response) override;
  grpc::ServerWriteReactor<v1::ExportAdapterResponse>* ExportAdapter(
      grpc::CallbackServerContext* context, const v1::ExportAdapterRequest* request) override;
  // What makes adapters: adapter_creation.cc, update_tensors_call.cc,
  // adapter_composition.cc.
  grpc::ServerUnaryReactor* CreateAdapter(grpc::CallbackServerContext* context,
                                          const v1::CreateAdapterRequest* request,
                                          v1::CreateAdapterResponse* response) override;
  grpc::ServerReadReactor<v1::UpdateAdapterTensorsRequest>* UpdateAdapterTensors(
      grpc::CallbackServerContext* context, v1::UpdateAdapterTensorsResponse* response) override;
  grpc::ServerUnaryReactor* EstimateCapacity(grpc::CallbackServerContext* context,
                                             const v1::EstimateCapacityRequest* request,
                                             v1::EstimateCapacityResponse* response) override;
  grpc::ServerUnaryReactor* ComposeAdapter(grpc::CallbackServerContext* context,
                                           const v1::ComposeAdapterRequest* request,
                                           v1::ComposeAdapterResponse* response) override;
  // What changes adapters that are there, and tells of changes: adapter_changes.cc.
  grpc::ServerUnaryReactor* UpdateAdapter(grpc::CallbackServerContext* context,
                                          const v1::UpdateAdapterRequest* request,
                                          v1::UpdateAdapterResponse* response) override;
  grpc::ServerUnaryReactor* RollbackAdapter(grpc::CallbackServerContext* context,
                                            const v1::RollbackAdapterRequest* request,
                                            v1::RollbackAdapterResponse* response) override;
  grpc::ServerUnaryReactor* SetAlias(grpc::CallbackServerContext* context,
                                     const v1::SetAliasRequest* request,
                                     v1::SetAliasResponse* response) override;
  grpc::ServerUnaryReactor* ReconcileAdapters(grpc::CallbackServerContext* context,
                                              const v1::ReconcileAdaptersRequest* request,
                                              v1::ReconcileAdaptersResponse* response) override;
  grpc::ServerWriteReactor<v1::WatchAdaptersResponse>* WatchAdapters(
      grpc::CallbackServerContext* context, const v1::WatchAdaptersRequest* request) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;

  // For a drain, which watches must not hold up.
  LongCalls& watchers() { return watchers_; }

 private:
  std::shared_ptr<RpcCall> Start(RpcMetrics& metrics, grpc::CallbackServerContext* context,
                                 const google::protobuf::Message& request);

  ControlPlane& plane_;
  LongCalls watchers_{kMaxWatchers, "watches"};
  RpcMetrics& load_;
  RpcMetrics& upload_;
  RpcMetrics& validate_;
  RpcMetrics& get_;
  RpcMetrics& list_;
  RpcMetrics& unload_;
  RpcMetrics& tensors_;
  RpcMetrics& export_;
  RpcMetrics& create_;
  RpcMetrics& compose_;
  RpcMetrics& update_tensors_;
  RpcMetrics& estimate_;
  RpcMetrics& update_;
  RpcMetrics& rollback_;
  RpcMetrics& set_alias_;
  RpcMetrics& reconcile_;
  RpcMetrics& watch_;
  RpcMetrics& info_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ADAPTER_SERVICE_H_
