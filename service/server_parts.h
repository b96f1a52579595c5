// What a server is made of, in the order in which the parts need each other.
#ifndef ADAPTERD_SERVICE_SERVER_PARTS_H_
#define ADAPTERD_SERVICE_SERVER_PARTS_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/catalog/content_store.h"
#include "core/catalog/sqlite_catalog.h"
#include "core/catalog/watched_source.h"
#include "service/adapter_service.h"
#include "service/admin_server.h"
#include "service/base_model_service.h"
#include "service/folder_mode.h"
#include "service/memory_pressure.h"
#include "service/merge_service.h"
#include "service/projection_service.h"
#include "service/server_options.h"
#include "service/tls/certificate_files.h"

namespace adapterd {

// What the process reads from and writes to.
struct ServerStorage {
  std::shared_ptr<const SourceRoots> adapters;
  std::shared_ptr<const SourceRoots> models;
  std::shared_ptr<const SourceRoots> outputs;  // of merged checkpoints
  std::shared_ptr<RenewableRoots> watched;     // null without --watch-adapters
  std::unique_ptr<SqliteCatalog> catalog;      // null without --data-dir
  std::unique_ptr<ContentStore> content;       // null when there is no folder for it
  std::vector<AdapterRecord> records;          // of the catalogue

  // The catalogue first: it holds the data folder, and only its holder may tidy the rest up.
  static absl::StatusOr<ServerStorage> Open(const ServerOptions& options);
};

// Members are destroyed from the last to the first: the gRPC server before all that its calls use,
// and the workers, whose jobs let go of handles and admissions after they have answered, before
// those.
class ServerParts {
 public:
  ServerParts(const ServerOptions& server_options, ServerStorage opened);

  // What --access-policy, --audit-log and the flags of TLS name. Before Listen.
  absl::Status OpenSecurity();
  absl::Status Listen();
  absl::Status LoadAll();
  absl::Status LoadFolder();
  void SetServing(bool serving);

  const ServerOptions options;
  ServerStorage storage;
  Metrics metrics;
  Logger logger;
  std::unique_ptr<AccessControl> access;                 // null without --access-policy
  std::unique_ptr<AuditLog> audit;                       // null without --audit-log
  std::unique_ptr<CertificateFiles> grpc_certificates;   // null without --tls-cert
  std::unique_ptr<CertificateFiles> admin_certificates;  // null without --admin-tls-cert
  std::shared_ptr<grpc::ServerCredentials> credentials;  // of the TCP port
  std::atomic<bool> draining{false};
  std::atomic<bool> ready{false};
  Kernels kernels;
  ThreadPool io_pool;
  const std::shared_ptr<MemoryBudget> budget;
  HostedBases bases;  // before the registry, whose loads look for them
  AdapterRegistry registry;
  Admission admission;
  BufferPool buffers;
  DoraGainCache dora_gains;
  RpcEnvironment environment;
  const v1::GetServerInfoResponse info;
  ThreadPool workers;
  QueueLimit queue_limit;
  ThreadPool control_pool;
  ThreadPool export_pool;
  ThreadPool making_pool;
  ThreadPool merge_helpers;
  ThreadPool merge_pool;  // after its helpers: its merges end first
  ContentCollector collector;
  ControlPlane control_plane;
  DataPlane data_plane;
  CheckpointPlane checkpoint_plane;
  AdapterService adapter_service;
  ProjectionService projection_service;
  MergeService merge_service;
  BaseModelService base_model_service;
  std::unique_ptr<grpc::Server> grpc_server;
  std::string grpc_address;
  std::string admin_address;
  std::unique_ptr<AdminServer> admin;
  std::unique_ptr<FolderWatch> folder_watch;  // null without --watch-adapters
  MemoryPressure memory_pressure;

 private:
  RegistryOptions MakeRegistryOptions();
  AdapterOpener MakeOpener() const;
  MemoryPressure::Relief MakeRelief();
  AdminPages MakePages();
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_SERVER_PARTS_H_
