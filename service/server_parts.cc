#include "service/server_parts.h"

#include <fmt/format.h>
#include <malloc.h>
#include <sys/resource.h>

#include <random>

#include "absl/synchronization/notification.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/merge/output_folder.h"
#include "service/collectors.h"
#include "service/debug_pages.h"
#include "service/projection_plan.h"
#include "service/short_work.h"

namespace adapterd {
namespace {

constexpr int kExportThreads = 4;  // a slow client holds one
constexpr int kMakingThreads = 2;  // each may hold some hundred MB beside the memory budget
constexpr int kIoThreads = 4;      // enough to keep a disk busy
// Of merges of checkpoints, so that requests come first where there are not CPUs enough for both.
constexpr int kMergeNice = 10;
constexpr int kControlThreads = 1;  // listings are short and never wait
// Of request and reply buffers that are kept for the next: enough for two weights of 4096 x 4096 in
// BF16 on their way at once, in both directions.
constexpr int64_t kMaxIdleBufferBytes = int64_t{128} << 20;

void PrepareMergeThread() {
  PrepareComputeThread();
  setpriority(PRIO_PROCESS, 0, kMergeNice);  // Linux: of the calling thread alone
}

std::string NewInstanceId() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
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

absl::StatusOr<ServerStorage> ServerStorage::Open(const ServerOptions& options) {
  ServerStorage storage;
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

ServerParts::ServerParts(const ServerOptions& server_options, ServerStorage opened)
    : options(server_options),
      storage(std::move(opened)),
      logger(options.log_format, options.log_level),
      io_pool("io", std::max(kIoThreads, options.threads), PrepareComputeThread),
      budget(MemoryBudget::Create(options.memory_budget_bytes)),
      bases(storage.models, budget, kernels, io_pool, workers),
      registry(MakeRegistryOptions(), kernels, MakeOpener(), budget, io_pool),
      admission(options.max_inflight_bytes, metrics.inflight_bytes()),
      buffers(kMaxIdleBufferBytes),
      environment{metrics, logger, options.max_message_bytes},
      info(ServerInfo(options, kernels, *storage.adapters, *storage.models)),
      workers("compute", options.threads, PrepareComputeThread),
      queue_limit(workers),
      control_pool("control", kControlThreads),
      export_pool("export", kExportThreads),
      making_pool("make", kMakingThreads, PrepareComputeThread),
      merge_helpers("merge-help", options.threads, PrepareMergeThread),
      merge_pool("merge", kMaxCheckpointMerges, PrepareMergeThread),
      collector(storage.content.get(), registry, io_pool, logger),
      control_plane{environment,  registry,
                    kernels,      io_pool,
                    control_pool, export_pool,
                    making_pool,  info,
                    draining,     storage.content.get(),
                    collector,    options.max_upload_bytes},
      data_plane{environment, registry, kernels, workers,   queue_limit,
                 admission,   buffers,  bases,   dora_gains},
      checkpoint_plane{environment,
                       registry,
                       merge_pool,
                       {*storage.models, *storage.outputs, kernels, merge_helpers,
                        std::make_shared<Disk>(Disk::Access::kUmask)}},
      adapter_service(control_plane),
      projection_service(data_plane),
      merge_service(data_plane, checkpoint_plane),
      base_model_service(control_plane, bases),
      memory_pressure([] { return ReadMemoryUse(); }, MakeRelief()) {
  registry.Restore(std::move(storage.records));
}

RegistryOptions ServerParts::MakeRegistryOptions() {
  RegistryOptions registry_options;
  registry_options.public_id_template = options.public_id_template;
  registry_options.keep_revisions = static_cast<size_t>(options.keep_revisions);
  registry_options.tenant_quotas = options.tenant_quotas;
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

AdapterOpener ServerParts::MakeOpener() const {
  const auto stored = storage.content ? storage.content->roots() : nullptr;
  return OpenWatchedAndOthers(
      storage.watched, storage.models,
      OpenFromRoots(storage.adapters, storage.models, stored, bases.Finder()));
}

MemoryPressure::Relief ServerParts::MakeRelief() {
  MemoryPressure::Relief relief;
  relief.began = [this](const MemoryUse& use) {
    metrics.MemoryPressure();
    logger.Log(LogLevel::kWarning, "memory_pressure",
               {{"used_bytes", use.used_bytes}, {"limit_bytes", use.limit_bytes}});
  };
  relief.drop_caches = [this] {
    buffers.DropIdle();
    malloc_trim(0);
  };
  relief.evict = [this](int64_t bytes) {
    registry.EvictUnused(bytes);
    malloc_trim(0);
  };
  return relief;
}

AdminPages ServerParts::MakePages() {
  AdminPages pages;
  pages.ready = [this] { return ready && !draining; };
  pages.status = [this](const StatusQuery& query) {
    return StatusJson({registry, metrics, workers, info}, ready && !draining, query);
  };
  pages.metrics = [this] {
    std::vector<prometheus::MetricFamily> more = CollectAdapters(registry);
    for (auto& family : CollectServer(workers, io_pool, buffers, info.isa())) {
      more.push_back(std::move(family));
    }
    for (auto& family : CollectProcess()) more.push_back(std::move(family));
    return metrics.Text(more);
  };
  if (options.debug_pages) {
    pages.debug["calls"] = [this] { return CallsJson(environment.open_calls, absl::Now()); };
    pages.debug["pools"] = [this] {
      return PoolsJson({{"compute", &workers},
                        {"io", &io_pool},
                        {"control", &control_pool},
                        {"export", &export_pool},
                        {"make", &making_pool},
                        {"merge", &merge_pool},
                        {"merge-help", &merge_helpers}});
    };
  }
  return pages;
}

absl::Status ServerParts::LoadAll() {
  std::vector<absl::Status> results(options.load.size());
  std::vector<absl::Notification> done(options.load.size());
  for (size_t i = 0; i < options.load.size(); ++i) {
    LoadRequest request;
    request.name = options.load[i].first;
    request.source.source = options.load[i].second;
    request.replace = true;  // of what the catalogue has under that name
    registry.Load(std::move(request), [&, i](const absl::StatusOr<LoadResult>& result) {
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
absl::Status ServerParts::LoadFolder() {
  if (storage.watched == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(folder_watch,
                   StartFolderMode(options.watch_adapters, storage.watched, registry, logger));
  folder_watch->AwaitFirstLoads();
  return absl::OkStatus();
}

}  // namespace adapterd
