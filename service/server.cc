#include "service/server.h"

#include <fmt/format.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <limits>
#include <random>

#include "absl/synchronization/notification.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/catalog/sqlite_catalog.h"
#include "core/catalog/watched_source.h"
#include "core/merge/output_folder.h"
#include "service/adapter_convert.h"
#include "service/collectors.h"
#include "service/folder_mode.h"
#include "service/projection_plan.h"
#include "service/short_work.h"

namespace adapterd {
namespace {

constexpr int kExportThreads = 4;  // a slow client holds one
constexpr int kIoThreads = 4;      // enough to keep a disk busy
// Of merges of checkpoints, so that requests come first where there are not CPUs enough for both.
constexpr int kMergeNice = 10;
constexpr int kControlThreads = 1;  // listings are short and never wait
// gRPC's own limit lies above ours, so that a message somewhat too large gets our error.
constexpr int64_t kMessageHeadroom = int64_t{64} << 20;
// Requests that were on their way when SIGTERM came still find an open door.
constexpr absl::Duration kDrainNotice = absl::Milliseconds(200);
// For clients to read what was sent before their connection closes. Idle ones may not even look in
// that time (gRPC's do so every 5 s), and lose nothing.
constexpr absl::Duration kCloseTimeout = absl::Seconds(2);
constexpr int kMaxStreamsPerConnection = 1024;
// Of request and reply buffers that are kept for the next: enough for two weights of 4096 x 4096 in
// BF16 on their way at once, in both directions.
constexpr int64_t kMaxIdleBufferBytes = int64_t{128} << 20;
// For watchers to be told, unless they do not read; also no more than half of the drain timeout.
constexpr absl::Duration kWatchersTimeout = absl::Seconds(1);

const char* const kServices[] = {"adapterd.v1.AdapterService", "adapterd.v1.ProjectionService",
                                 "adapterd.v1.MergeService", "adapterd.v1.BaseModelService"};

void PrepareMergeThread() {
  PrepareComputeThread();
  setpriority(PRIO_PROCESS, 0, kMergeNice);  // Linux: of the calling thread alone
}

int GrpcMessageLimit(int64_t max_message_bytes) {
  const int64_t limit = 2 * max_message_bytes + kMessageHeadroom;
  return static_cast<int>(std::min<int64_t>(limit, std::numeric_limits<int>::max()));
}

std::string NewInstanceId() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

std::string JoinHostPort(const std::string& host, int port) {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

// Whether a process listens on the socket file at `path`.
bool IsListening(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return false;
  path.copy(address.sun_path, path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool listens =
      fd >= 0 && connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  if (fd >= 0) close(fd);
  return listens;
}

// A socket file that a dead process left behind would make the bind fail; anything else is kept.
absl::Status RemoveStaleSocket(const std::string& path) {
  struct stat status;
  if (lstat(path.c_str(), &status) != 0) return absl::OkStatus();
  const bool is_socket = S_ISSOCK(status.st_mode);
  if (is_socket && !IsListening(path) && unlink(path.c_str()) == 0) return absl::OkStatus();
  return Error(Reason::kSourceUnavailable,
               fmt::format("--unix-socket: {} {}", path,
                           is_socket ? "belongs to a process that listens there"
                                     : "exists and is not a socket"));
}

// Where uploads go. Null when there is neither a data folder nor one for temporary files: a server
// that takes no uploads needs none.
absl::StatusOr<std::unique_ptr<ContentStore>> OpenContent(const std::string& data_dir) {
  if (!data_dir.empty()) return ContentStore::Open(data_dir + "/store");
  auto temporary = ContentStore::OpenTemporary();
  if (!temporary.ok()) return nullptr;
  return temporary;
}

v1::GetServerInfoResponse ServerInfo(const ServerOptions& options, const Kernels& kernels,
                                     const SourceRoots& adapters, const SourceRoots& models) {
  v1::GetServerInfoResponse info;
  info.set_version(ADAPTERD_VERSION);
  info.set_instance_id(NewInstanceId());
  info.set_onednn_version(Kernels::OneDnnVersion());
  info.set_isa(kernels.isa());
  info.set_threads(options.threads);
  for (const std::string& name : adapters.names()) info.add_adapter_roots(name);
  for (const std::string& name : models.names()) info.add_model_roots(name);
  for (const char* format : {"peft", "gguf", "mlx", "kohya", "diffusers"}) info.add_formats(format);
  v1::ServerLimits& limits = *info.mutable_limits();
  limits.set_max_message_bytes(options.max_message_bytes);
  limits.set_max_rows(kMaxRows);
  limits.set_max_segments(kMaxSegments);
  limits.set_max_adapters_per_segment(kMaxAdaptersPerSegment);
  info.set_memory_budget_bytes(options.memory_budget_bytes);
  info.mutable_start_time()->set_seconds(absl::ToUnixSeconds(absl::Now()));
  return info;
}

}  // namespace

// What the process reads from and writes to.
struct Server::Storage {
  std::shared_ptr<const SourceRoots> adapters;
  std::shared_ptr<const SourceRoots> models;
  std::shared_ptr<const SourceRoots> outputs;  // of merged checkpoints
  std::shared_ptr<RenewableRoots> watched;     // null without --watch-adapters
  std::unique_ptr<SqliteCatalog> catalog;      // null without --data-dir
  std::unique_ptr<ContentStore> content;       // null when there is no folder for it
  std::vector<AdapterRecord> records;          // of the catalogue

  // The catalogue first: it holds the data folder, and only its holder may tidy the rest up.
  static absl::StatusOr<Storage> Open(const ServerOptions& options);
};

absl::StatusOr<Server::Storage> Server::Storage::Open(const ServerOptions& options) {
  Storage storage;
  ASSIGN_OR_RETURN(SourceRoots adapters, SourceRoots::Open(options.adapter_roots));
  ASSIGN_OR_RETURN(SourceRoots models, SourceRoots::Open(options.model_roots));
  storage.adapters = std::make_shared<const SourceRoots>(std::move(adapters));
  storage.models = std::make_shared<const SourceRoots>(std::move(models));
  storage.outputs = storage.models;
  if (!options.output_root.empty()) {
    ASSIGN_OR_RETURN(SourceRoots outputs, SourceRoots::Open({{"", options.output_root}}));
    storage.outputs = std::make_shared<const SourceRoots>(std::move(outputs));
  }
  OutputFolder::RemoveUnfinished(*storage.outputs);
  ASSIGN_OR_RETURN(storage.watched, OpenWatchedFolder(options.watch_adapters));
  if (!options.data_dir.empty()) {
    ASSIGN_OR_RETURN(storage.catalog, SqliteCatalog::Open(options.data_dir));
    ASSIGN_OR_RETURN(storage.records, storage.catalog->ReadAll());
  }
  ASSIGN_OR_RETURN(storage.content, OpenContent(options.data_dir));
  return storage;
}

// Members are destroyed from the last to the first: the gRPC server before all that its calls use,
// and the workers, whose jobs let go of handles and admissions after they have answered, before
// those.
class Server::Parts {
 public:
  Parts(const ServerOptions& server_options, Storage opened)
      : options(server_options),
        storage(std::move(opened)),
        logger(options.log_format, options.log_level),
        io_pool("io", std::max(kIoThreads, options.threads), PrepareComputeThread),
        budget(MemoryBudget::Create(options.memory_budget_bytes)),
        bases(storage.models, budget, kernels, io_pool, workers),
        registry(MakeRegistryOptions(), kernels, MakeOpener(), budget, io_pool),
        admission(options.max_inflight_bytes, metrics.inflight_bytes()),
        environment{metrics, logger, options.max_message_bytes},
        info(ServerInfo(options, kernels, *storage.adapters, *storage.models)),
        workers("compute", options.threads, PrepareComputeThread),
        control_pool("control", kControlThreads),
        export_pool("export", kExportThreads),
        merge_helpers("merge-help", options.threads, PrepareMergeThread),
        merge_pool("merge", kMaxCheckpointMerges, PrepareMergeThread),
        collector(storage.content.get(), registry, io_pool, logger),
        control_plane{environment,
                      registry,
                      kernels,
                      io_pool,
                      control_pool,
                      export_pool,
                      info,
                      draining,
                      storage.content.get(),
                      collector,
                      options.max_upload_bytes},
        data_plane{environment, registry, kernels, workers, admission, buffers, bases, dora_gains},
        checkpoint_plane{environment,
                         registry,
                         merge_pool,
                         {*storage.models, *storage.outputs, kernels, merge_helpers,
                          std::make_shared<Disk>(Disk::Access::kUmask)}},
        adapter_service(control_plane),
        projection_service(data_plane),
        merge_service(data_plane, checkpoint_plane),
        base_model_service(control_plane, bases) {
    registry.Restore(std::move(storage.records));
  }

  absl::Status Listen();
  absl::Status LoadAll();
  absl::Status LoadFolder();
  void SetServing(bool serving);

  const ServerOptions options;
  Storage storage;
  Metrics metrics;
  Logger logger;
  std::atomic<bool> draining{false};
  std::atomic<bool> ready{false};
  Kernels kernels;
  ThreadPool io_pool;
  const std::shared_ptr<MemoryBudget> budget;
  HostedBases bases;  // before the registry, whose loads look for them
  AdapterRegistry registry;
  Admission admission;
  BufferPool buffers{kMaxIdleBufferBytes};
  DoraGainCache dora_gains;
  RpcEnvironment environment;
  const v1::GetServerInfoResponse info;
  ThreadPool workers;
  ThreadPool control_pool;
  ThreadPool export_pool;
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

 private:
  RegistryOptions MakeRegistryOptions();
  AdapterOpener MakeOpener() const;
  AdminPages MakePages();
};

RegistryOptions Server::Parts::MakeRegistryOptions() {
  RegistryOptions registry_options;
  registry_options.public_id_template = options.public_id_template;
  registry_options.keep_revisions = static_cast<size_t>(options.keep_revisions);
  registry_options.journal = storage.catalog.get();
  registry_options.on_load = [this](const LoadEvent& event) {
    metrics.Load(event.status, event.read, event.duration);
    if (event.status.ok() && event.read) {
      logger.Log(LogLevel::kInfo, "adapter_loaded",
                 {{"adapter", event.name}, {"ms", absl::ToDoubleMilliseconds(event.duration)}});
    }
  };
  registry_options.on_evict = [this](const std::string& name) {
    metrics.Evicted();
    logger.Log(LogLevel::kInfo, "adapter_evicted", {{"adapter", name}});
  };
  registry_options.on_thrash = [this] {
    logger.Log(LogLevel::kWarning, "thrashing",
               {{"memory_budget_bytes", registry.budget().limit()},
                {"hint", "the adapters in use need more memory than the budget gives"}});
  };
  return registry_options;
}

AdapterOpener Server::Parts::MakeOpener() const {
  const auto stored = storage.content ? storage.content->roots() : nullptr;
  return OpenWatchedAndOthers(
      storage.watched, storage.models,
      OpenFromRoots(storage.adapters, storage.models, stored, bases.Finder()));
}

AdminPages Server::Parts::MakePages() {
  AdminPages pages;
  pages.ready = [this] { return ready && !draining; };
  pages.status = [this](const StatusQuery& query) {
    return StatusJson({registry, metrics, workers, info}, ready && !draining, query);
  };
  pages.metrics = [this] {
    std::vector<prometheus::MetricFamily> more = CollectAdapters(registry);
    for (auto& family : CollectServer(workers, io_pool, buffers, info.isa()))
      more.push_back(std::move(family));
    for (auto& family : CollectProcess()) more.push_back(std::move(family));
    return metrics.Text(more);
  };
  return pages;
}

absl::Status Server::Parts::Listen() {
  const HostPort address = *ParseHostPort(options.grpc_address);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(JoinHostPort(address.host, address.port),
                           grpc::InsecureServerCredentials(), &port);
  if (!options.unix_socket.empty()) {
    RETURN_IF_ERROR(RemoveStaleSocket(options.unix_socket));
    builder.AddListeningPort("unix:" + options.unix_socket, grpc::InsecureServerCredentials());
  }
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.SetMaxReceiveMessageSize(GrpcMessageLimit(options.max_message_bytes));
  builder.SetMaxSendMessageSize(-1);
  builder.SetDefaultCompressionAlgorithm(GRPC_COMPRESS_NONE);
  builder.RegisterService(&adapter_service);
  builder.RegisterService(&projection_service);
  builder.RegisterService(&merge_service);
  builder.RegisterService(&base_model_service);
  grpc_server = builder.BuildAndStart();
  if (grpc_server == nullptr || port == 0) {
    return Error(
        Reason::kSourceUnavailable,
        fmt::format("cannot listen on {} for gRPC; is the port taken?", options.grpc_address));
  }
  SetServing(false);
  grpc_address = JoinHostPort(address.host, port);

  const HostPort admin_host = *ParseHostPort(options.admin_address);
  ASSIGN_OR_RETURN(admin, AdminServer::Start(admin_host, MakePages()));
  admin_address = JoinHostPort(admin_host.host, admin->port());
  return absl::OkStatus();
}

absl::Status Server::Parts::LoadAll() {
  std::vector<absl::Status> results(options.load.size());
  std::vector<absl::Notification> done(options.load.size());
  for (size_t i = 0; i < options.load.size(); ++i) {
    LoadRequest request;
    request.name = options.load[i].first;
    request.source.source = options.load[i].second;
    request.replace = true;  // of what the catalogue has under that name
    registry.Load(std::move(request), [&, i](absl::StatusOr<LoadResult> result) {
      results[i] = result.status();
      done[i].Notify();
    });
  }
  for (absl::Notification& each : done) each.WaitForNotification();
  for (size_t i = 0; i < results.size(); ++i) {
    if (results[i].ok()) continue;
    return Error(GetErrorDetails(results[i]).reason,
                 fmt::format("--load {}={}: {}", options.load[i].first, options.load[i].second,
                             std::string(results[i].message())));
  }
  return absl::OkStatus();
}

// An adapter of the folder that cannot be loaded is no reason not to serve the others.
absl::Status Server::Parts::LoadFolder() {
  if (storage.watched == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(folder_watch,
                   StartFolderMode(options.watch_adapters, storage.watched, registry, logger));
  folder_watch->AwaitFirstLoads();
  return absl::OkStatus();
}

void Server::Parts::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = grpc_server->GetHealthCheckService();
  health->SetServingStatus(true);  // "": the process lives, which is all that liveness asks
  for (const char* service : kServices) health->SetServingStatus(service, serving);
}

Server::Server(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Server::~Server() {
  if (parts_->grpc_server != nullptr) {
    parts_->grpc_server->Shutdown(std::chrono::system_clock::now());
    parts_->grpc_server->Wait();
  }
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  for (const auto& [name, source] : options.load) {
    RETURN_IF_ERROR(CheckAdapterName(name, "--load"));
  }
  ASSIGN_OR_RETURN(Storage storage, Storage::Open(options));
  std::unique_ptr<Server> server(new Server(std::make_unique<Parts>(options, std::move(storage))));
  ASSIGN_OR_RETURN(server->parts_->data_plane.short_flops,
                   MeasureShortFlops(server->parts_->kernels));
  RETURN_IF_ERROR(server->parts_->Listen());
  RETURN_IF_ERROR(server->parts_->LoadAll());
  RETURN_IF_ERROR(server->parts_->LoadFolder());
  // All that is served again is known by now; the rest was left by a crash.
  server->parts_->collector.Request([] {});
  server->parts_->ready = true;
  server->parts_->SetServing(true);
  server->parts_->logger.Log(LogLevel::kInfo, "serving",
                             {{"version", ADAPTERD_VERSION},
                              {"grpc", server->parts_->grpc_address},
                              {"admin", server->parts_->admin_address},
                              {"threads", int64_t{options.threads}},
                              {"memory_budget_bytes", options.memory_budget_bytes},
                              {"isa", server->parts_->kernels.isa()},
                              {"short_flops", server->parts_->data_plane.short_flops},
                              {"onednn", Kernels::OneDnnVersion()}});
  return server;
}

std::string Server::ReadyLine() const {
  return fmt::format("adapterd ready grpc={} admin={}", parts_->grpc_address,
                     parts_->admin_address);
}

void Server::Reload(const absl::StatusOr<ServerOptions>& options) {
  if (!options.ok()) {
    parts_->logger.Log(LogLevel::kError, "reload_failed",
                       {{"message", std::string(options.status().message())}});
    return;
  }
  parts_->registry.SetMemoryBudget(options->memory_budget_bytes);
  parts_->logger.Log(LogLevel::kInfo, "reloaded",
                     {{"memory_budget_bytes", options->memory_budget_bytes}});
}

bool Server::Drain() {
  const absl::Time deadline = absl::Now() + parts_->options.drain_timeout;
  parts_->draining = true;
  parts_->SetServing(false);
  parts_->logger.Log(LogLevel::kInfo, "draining");
  parts_->folder_watch.reset();
  absl::SleepFor(std::min(kDrainNotice, parts_->options.drain_timeout));
  parts_->environment.open_calls.Close();
  const absl::Time cut = absl::Now() + std::min(kWatchersTimeout, (deadline - absl::Now()) / 2);
  LongCalls* const long_calls[] = {&parts_->adapter_service.watchers(),
                                   &parts_->projection_service.streams()};
  for (LongCalls* calls : long_calls) calls->End();
  if (!parts_->environment.open_calls.AwaitNone(cut)) {
    for (LongCalls* calls : long_calls) calls->Cut();
  }
  const bool clean = parts_->environment.open_calls.AwaitNone(deadline);
  // Not earlier: once told to shut down, gRPC closes a connection with its last call, and the reply
  // that the client has not read by then is lost. Without calls it waits for the client's word.
  const absl::Time close = std::min(deadline, absl::Now() + kCloseTimeout);
  parts_->grpc_server->Shutdown(absl::ToChronoTime(close));
  parts_->grpc_server->Wait();
  parts_->logger.Log(clean ? LogLevel::kInfo : LogLevel::kWarning,
                     clean ? "drained" : "drain_timeout");
  return clean;
}

}  // namespace adapterd
