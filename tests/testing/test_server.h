// The services in this process, behind a real gRPC channel.
#ifndef ADAPTERD_TESTS_TESTING_TEST_SERVER_H_
#define ADAPTERD_TESTS_TESTING_TEST_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "core/adapter/adapter_reader.h"
#include "core/registry/adapter_registry.h"
#include "service/adapter_service.h"
#include "service/admission.h"
#include "service/base_model_service.h"
#include "service/collectors.h"
#include "service/merge_service.h"
#include "service/projection_service.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {

// Where uploads go.
enum class Uploads { kDataFolder, kTemporary, kNowhere };

struct TestServerOptions {
  int64_t memory_budget_bytes = int64_t{1} << 30;
  int64_t max_message_bytes = int64_t{64} << 20;
  int64_t max_inflight_bytes = int64_t{1} << 30;
  int64_t max_upload_bytes = int64_t{64} << 20;
  Uploads uploads = Uploads::kDataFolder;
  int threads = 2;
  int io_threads = 2;
  size_t keep_revisions = 0;
  int64_t short_flops = 6'000'000;  // 0: all work goes through the queue
  AdapterOpener opener;             // empty: reads what is below dir()
};

// An answer as a client gets it.
template <typename Response>
struct Reply {
  grpc::Status status;
  Response response;

  const Response* operator->() const { return &response; }
};

// Put together as the program does it, but without ports. Any thread may call the RPCs.
class TestServer {
 public:
  explicit TestServer(const TestServerOptions& options = {})
      : logger_(LogFormat::kText, LogLevel::kOff),
        io_pool_("io", options.io_threads),
        content_(ContentFor(options)),
        budget_(MemoryBudget::Create(options.memory_budget_bytes)),
        bases_(Roots(), budget_, kernels_, io_pool_, workers_),
        registry_(RegistryOptionsFor(options), kernels_, OpenerFor(options), budget_, io_pool_),
        admission_(options.max_inflight_bytes, metrics_.inflight_bytes()),
        environment_{metrics_, logger_, options.max_message_bytes},
        info_(InfoFor(options)),
        workers_("compute", options.threads, PrepareComputeThread),
        control_pool_("control", 1),
        export_pool_("export", 1),
        making_pool_("make", 1),
        collector_(content_.get(), registry_, io_pool_, logger_),
        control_plane_{environment_,  registry_,      kernels_,     io_pool_,
                       control_pool_, export_pool_,   making_pool_, info_,
                       draining_,     content_.get(), collector_,   options.max_upload_bytes},
        data_plane_{environment_, registry_, kernels_, workers_,    queue_limit_,
                    admission_,   buffers_,  bases_,   dora_gains_, options.short_flops},
        adapter_service_(control_plane_),
        projection_service_(data_plane_),
        merge_service_(data_plane_, checkpoint_plane_),
        base_model_service_(control_plane_, bases_) {
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(-1);
    builder.SetMaxSendMessageSize(-1);
    builder.RegisterService(&adapter_service_);
    builder.RegisterService(&projection_service_);
    builder.RegisterService(&merge_service_);
    builder.RegisterService(&base_model_service_);
    server_ = builder.BuildAndStart();
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    channel_ = server_->InProcessChannel(arguments);
    adapters_ = v1::AdapterService::NewStub(channel_);
    projections_ = v1::ProjectionService::NewStub(channel_);
    merges_ = v1::MergeService::NewStub(channel_);
    base_models_ = v1::BaseModelService::NewStub(channel_);
  }
  ~TestServer() { Shutdown(); }

  // Cuts off what still runs and waits until all of it is over.
  void Shutdown() {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  // The adapter root, and the root of base models.
  const TempDir& dir() const { return dir_; }
  // The folder of what has to survive a restart.
  const TempDir& data_dir() const { return data_dir_; }
  AdapterRegistry& registry() { return registry_; }
  ContentCollector& collector() { return collector_; }
  // Waits until the server has done with every call, also with those that their clients gave up.
  void AwaitNoCalls() { environment_.open_calls.AwaitNone(absl::InfiniteFuture()); }
  Metrics& metrics() { return metrics_; }
  std::atomic<bool>& draining() { return draining_; }
  ThreadPool& workers() { return workers_; }
  DataPlane& data_plane() { return data_plane_; }
  const BufferPool& buffers() const { return buffers_; }
  LongCalls& streams() { return projection_service_.streams(); }
  LongCalls& watchers() { return adapter_service_.watchers(); }
  // Lets no more calls in; true when all that were in have left within `patience`.
  bool AwaitNoCalls(absl::Duration patience) {
    environment_.open_calls.Close();
    return environment_.open_calls.AwaitNone(absl::Now() + patience);
  }
  int64_t used_bytes() const { return registry_.budget().used(); }
  double inflight_bytes() { return metrics_.inflight_bytes().Value(); }

  // For bytes that no stub would send.
  const std::shared_ptr<grpc::Channel>& channel() { return channel_; }
  v1::AdapterService::Stub& adapters() { return *adapters_; }
  v1::ProjectionService::Stub& projections() { return *projections_; }
  v1::MergeService::Stub& merges() { return *merges_; }
  v1::BaseModelService::Stub& base_models() { return *base_models_; }

  Reply<v1::LoadAdapterResponse> Load(const v1::LoadAdapterRequest& request) {
    return Call(&v1::AdapterService::Stub::LoadAdapter, adapters_, request);
  }
  Reply<v1::LoadAdapterResponse> Load(const std::string& name, const std::string& source) {
    v1::LoadAdapterRequest request;
    request.set_name(name);
    request.set_source(source);
    return Load(request);
  }
  Reply<v1::ValidateAdapterResponse> Validate(const v1::ValidateAdapterRequest& request) {
    return Call(&v1::AdapterService::Stub::ValidateAdapter, adapters_, request);
  }
  Reply<v1::GetAdapterResponse> Get(const v1::GetAdapterRequest& request) {
    return Call(&v1::AdapterService::Stub::GetAdapter, adapters_, request);
  }
  Reply<v1::ListAdaptersResponse> List(const v1::ListAdaptersRequest& request = {}) {
    return Call(&v1::AdapterService::Stub::ListAdapters, adapters_, request);
  }
  Reply<v1::UnloadAdapterResponse> Unload(const v1::UnloadAdapterRequest& request) {
    return Call(&v1::AdapterService::Stub::UnloadAdapter, adapters_, request);
  }
  Reply<v1::UnloadAdapterResponse> Unload(const std::string& name) {
    v1::UnloadAdapterRequest request;
    request.set_name(name);
    return Unload(request);
  }
  Reply<v1::UpdateAdapterResponse> Update(const v1::UpdateAdapterRequest& request) {
    return Call(&v1::AdapterService::Stub::UpdateAdapter, adapters_, request);
  }
  Reply<v1::RollbackAdapterResponse> Rollback(const std::string& name,
                                              const std::string& revision) {
    v1::RollbackAdapterRequest request;
    request.set_name(name);
    request.set_revision(revision);
    return Call(&v1::AdapterService::Stub::RollbackAdapter, adapters_, request);
  }
  Reply<v1::SetAliasResponse> SetAlias(const std::string& name, const std::string& alias,
                                       const std::string& revision) {
    v1::SetAliasRequest request;
    request.set_name(name);
    request.set_alias(alias);
    request.set_revision(revision);
    return Call(&v1::AdapterService::Stub::SetAlias, adapters_, request);
  }
  Reply<v1::ReconcileAdaptersResponse> Reconcile(const v1::ReconcileAdaptersRequest& request) {
    return Call(&v1::AdapterService::Stub::ReconcileAdapters, adapters_, request);
  }
  Reply<v1::GetServerInfoResponse> Info() {
    return Call(&v1::AdapterService::Stub::GetServerInfo, adapters_, v1::GetServerInfoRequest());
  }
  Reply<v1::ApplyProjectionResponse> Apply(const v1::ApplyProjectionRequest& request) {
    return Call(&v1::ProjectionService::Stub::ApplyProjection, projections_, request);
  }
  Reply<v1::MergeResponse> Merge(const v1::MergeRequest& request) {
    return Call(&v1::MergeService::Stub::Merge, merges_, request);
  }

  // What /metrics would say.
  std::string MetricsText() {
    std::vector<prometheus::MetricFamily> more = CollectAdapters(registry_);
    for (auto& family : CollectServer(workers_, io_pool_, buffers_, kernels_.isa()))
      more.push_back(std::move(family));
    for (auto& family : CollectProcess()) more.push_back(std::move(family));
    return metrics_.Text(more);
  }

  // The value of one series, written as in the text: name{label="value"}. Throws when there is
  // none.
  double Metric(const std::string& series) {
    for (const absl::string_view line : absl::StrSplit(MetricsText(), '\n')) {
      const std::pair<absl::string_view, absl::string_view> parts =
          absl::StrSplit(line, absl::MaxSplits(' ', 1));
      double value = 0;
      if (parts.first == series && absl::SimpleAtod(parts.second, &value)) return value;
    }
    throw std::out_of_range("no series " + series);
  }

 private:
  template <typename Service, typename Stub, typename Request, typename Response>
  static Reply<Response> Call(grpc::Status (Service::*method)(grpc::ClientContext*, const Request&,
                                                              Response*),
                              const std::unique_ptr<Stub>& stub, const Request& request) {
    grpc::ClientContext context;
    Reply<Response> reply;
    reply.status = ((*stub).*method)(&context, request, &reply.response);
    return reply;
  }

  RegistryOptions RegistryOptionsFor(const TestServerOptions& options) {
    RegistryOptions registry_options;
    registry_options.keep_revisions = options.keep_revisions;
    registry_options.on_load = [this](const LoadEvent& event) {
      metrics_.Load(event.status, event.read, event.duration);
    };
    return registry_options;
  }

  AdapterOpener OpenerFor(const TestServerOptions& options) const {
    if (options.opener) return options.opener;
    return OpenFromRoots(Roots(), Roots(), content_ ? content_->roots() : nullptr, bases_.Finder());
  }

  std::shared_ptr<const SourceRoots> Roots() const {
    return std::make_shared<const SourceRoots>(
        SourceRoots::Open({{"", dir_.path().string()}}).value());
  }

  std::unique_ptr<ContentStore> ContentFor(const TestServerOptions& options) const {
    if (options.uploads == Uploads::kNowhere) return nullptr;
    if (options.uploads == Uploads::kTemporary) return ContentStore::OpenTemporary().value();
    return ContentStore::Open(data_dir_ / "store").value();
  }

  static v1::GetServerInfoResponse InfoFor(const TestServerOptions& options) {
    v1::GetServerInfoResponse info;
    info.set_version("test");
    info.set_threads(options.threads);
    return info;
  }

  TempDir dir_;
  TempDir data_dir_;
  Metrics metrics_;
  Logger logger_;
  std::atomic<bool> draining_{false};
  Kernels kernels_;
  ThreadPool io_pool_;
  const std::unique_ptr<ContentStore> content_;
  const std::shared_ptr<MemoryBudget> budget_;
  HostedBases bases_;
  AdapterRegistry registry_;
  Admission admission_;
  BufferPool buffers_{int64_t{64} << 20};
  DoraGainCache dora_gains_;
  RpcEnvironment environment_;
  const v1::GetServerInfoResponse info_;
  ThreadPool workers_;
  QueueLimit queue_limit_{workers_};
  ThreadPool control_pool_;
  ThreadPool export_pool_;
  ThreadPool making_pool_;
  ThreadPool merge_helpers_{"merge-help", 2, PrepareComputeThread};
  ThreadPool merge_pool_{"merge", kMaxCheckpointMerges, PrepareComputeThread};
  ContentCollector collector_;
  ControlPlane control_plane_;
  DataPlane data_plane_;
  const SourceRoots merge_roots_ = SourceRoots::Open({{"", dir_.path().string()}}).value();
  CheckpointPlane checkpoint_plane_{
      environment_,
      registry_,
      merge_pool_,
      {merge_roots_, merge_roots_, kernels_, merge_helpers_, std::make_shared<Disk>()}};
  AdapterService adapter_service_;
  ProjectionService projection_service_;
  MergeService merge_service_;
  BaseModelService base_model_service_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::AdapterService::Stub> adapters_;
  std::unique_ptr<v1::ProjectionService::Stub> projections_;
  std::unique_ptr<v1::MergeService::Stub> merges_;
  std::unique_ptr<v1::BaseModelService::Stub> base_models_;
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_TEST_SERVER_H_
