// MergeCheckpoint of a server in a process of its own, beside `cp -r` of the same folder.
#include <fcntl.h>
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "adapterd/v1/adapter_service.grpc.pb.h"
#include "adapterd/v1/merge_service.grpc.pb.h"
#include "bench/child_server.h"
#include "bench/peft_folder.h"
#include "bench/suites/merge.h"
#include "bench/temporary_folder.h"
#include "core/base/status_macros.h"
#include "core/formats/safetensors.h"

namespace adapterd::bench {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kRank = 16;
constexpr int kLayers = 5;       // of a Llama of 7B: 2 GB in bf16
constexpr int kManyLayers = 15;  // 6 GB
constexpr float kTrainedWeight = 0.05f;
constexpr double kTimeBar = 1.5;
constexpr double kMegabyte = 1 << 20;
constexpr double kMemoryBar = 256;  // MB on top of what the adapter takes
constexpr MeasureOptions kFull{absl::Seconds(60), 5, /*cpu_time=*/false};
constexpr MeasureOptions kQuick{absl::Seconds(10), 2, /*cpu_time=*/false};
constexpr auto kSampleInterval = std::chrono::milliseconds(10);

// A shard a layer. With `sparse` its weights are holes, which are zeros and take no disk.
absl::StatusOr<int64_t> WriteCheckpoint(const fs::path& folder, int layers, bool sparse) {
  fs::create_directories(folder);
  std::string map;
  int64_t bytes = 0;
  const std::vector<PeftModule> modules = Llama7bModules(layers);
  const size_t per_layer = modules.size() / layers;
  for (int layer = 0; layer < layers; ++layer) {
    std::vector<SafetensorsSpec> specs;
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", layer + 1, layers);
    for (size_t i = layer * per_layer; i < (layer + 1) * per_layer; ++i) {
      specs.push_back({modules[i].path + ".weight",
                       DType::kBF16,
                       {modules[i].out_features, modules[i].in_features}});
      map += fmt::format("{}\"{}\":\"{}\"", map.empty() ? "" : ",", specs.back().name, name);
    }
    ASSIGN_OR_RETURN(const SafetensorsLayout layout, LayOutSafetensors(specs, {{"format", "pt"}}));
    std::ofstream file(folder / name, std::ios::binary);
    file << layout.start;
    for (const size_t i : sparse ? std::vector<size_t>() : layout.order) {
      const Tensor weight = RandomMatrix(DType::kBF16, specs[i].shape[0], specs[i].shape[1],
                                         kTrainedWeight, static_cast<uint32_t>(i));
      file.write(reinterpret_cast<const char*>(weight.bytes().data()),
                 static_cast<std::streamsize>(weight.bytes().size()));
    }
    file.close();
    if (!file) return absl::InternalError("cannot write a checkpoint of several GB");
    fs::resize_file(folder / name, layout.file_bytes);
    bytes += layout.file_bytes;
  }
  std::ofstream(folder / "model.safetensors.index.json") << "{\"weight_map\":{" << map << "}}";
  return bytes;
}

// Runs a program and waits for it.
absl::Status Run(std::vector<std::string> command) {
  std::vector<char*> arguments;
  for (std::string& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t pid = 0;
  int status = 0;
  if (posix_spawnp(&pid, arguments[0], nullptr, nullptr, arguments.data(), environ) != 0 ||
      waitpid(pid, &status, 0) != pid || status != 0) {
    return absl::InternalError("cannot run " + command[0]);
  }
  return absl::OkStatus();
}

absl::Status SyncAll(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const int file = open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    const bool synced = file >= 0 && fsync(file) == 0;
    if (file >= 0) close(file);
    if (!synced) return absl::ErrnoToStatus(errno, entry.path().string());
  }
  return absl::OkStatus();
}

int64_t AnonymousBytes(pid_t pid) {
  std::ifstream status(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return std::stoll(line.substr(8)) * 1024;
  }
  return 0;
}

// A server with one adapter, whose model root and output root are `root`.
class Merger {
 public:
  static absl::StatusOr<std::unique_ptr<Merger>> Start(const PeftFolder& adapter,
                                                       const fs::path& root) {
    auto merger = std::make_unique<Merger>();
    ASSIGN_OR_RETURN(
        merger->server_,
        ChildServer::Start(
            {OwnFolder() + "/adapterd", "--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0",
             "--adapter-root=" + adapter.root().string(), "--model-root=" + root.string(),
             "--load=a=" + adapter.adapter()},
            (root / "log").string()));
    merger->stub_ = v1::MergeService::NewStub(
        grpc::CreateChannel(merger->server_->address(), grpc::InsecureChannelCredentials()));
    return merger;
  }

  absl::Status Merge(const std::string& source, const std::string& output, int64_t tensors) {
    v1::MergeCheckpointRequest request;
    request.set_source(source);
    request.set_output(output);
    request.add_adapters()->set_name("a");
    grpc::ClientContext context;
    v1::MergeCheckpointResponse response;
    const auto stream = stub_->MergeCheckpoint(&context, request);
    while (stream->Read(&response)) continue;
    const grpc::Status status = stream->Finish();
    if (!status.ok()) return absl::InternalError(status.error_message());
    if (response.result().merged_tensors() == tensors) return absl::OkStatus();
    return absl::InternalError("not every tensor was merged");
  }

  // Most that the server gains while it merges.
  absl::StatusOr<int64_t> PeakOf(const std::string& source, const std::string& output,
                                 int64_t tensors) {
    const int64_t before = AnonymousBytes(server_->pid());
    std::atomic<int64_t> peak = before;
    std::atomic<bool> ends = false;
    std::thread sampler([&] {
      while (!ends) {
        peak = std::max<int64_t>(peak, AnonymousBytes(server_->pid()));
        std::this_thread::sleep_for(kSampleInterval);
      }
    });
    const absl::Status merged = Merge(source, output, tensors);
    ends = true;
    sampler.join();
    RETURN_IF_ERROR(merged);
    return peak - before;
  }

 private:
  std::unique_ptr<ChildServer> server_;
  std::unique_ptr<v1::MergeService::Stub> stub_;
};

absl::Status Memory(SuiteContext& context, const fs::path& root, int layers, bool sparse) {
  const std::vector<PeftModule> modules = Llama7bModules(layers);
  ASSIGN_OR_RETURN(const auto adapter, PeftFolder::Create(modules, DType::kBF16, kRank));
  const fs::path source = root / "memory";
  ASSIGN_OR_RETURN(const int64_t bytes, WriteCheckpoint(source, layers, sparse));
  ASSIGN_OR_RETURN(const auto merger, Merger::Start(*adapter, root));
  ASSIGN_OR_RETURN(const int64_t peak, merger->PeakOf("memory", "merged", modules.size()));
  fs::remove_all(source);
  fs::remove_all(root / "merged");
  context.report.Add(Figure{"merge",
                            "MergeCheckpoint, RssAnon gained",
                            fmt::format("{:.1f} GB, r={}", static_cast<double>(bytes) / 1e9, kRank),
                            static_cast<double>(peak) / kMegabyte,
                            "MiB",
                            {},
                            kMemoryBar});
  return absl::OkStatus();
}

}  // namespace

absl::Status RunCheckpointMerges(SuiteContext& context) {
  ASSIGN_OR_RETURN(const auto root, TemporaryFolder::Create());
  const std::vector<PeftModule> modules = Llama7bModules(kLayers);
  const auto tensors = static_cast<int64_t>(modules.size());
  {
    ASSIGN_OR_RETURN(const auto adapter, PeftFolder::Create(modules, DType::kBF16, kRank));
    const fs::path source = root->path() / "base";
    ASSIGN_OR_RETURN(const int64_t bytes, WriteCheckpoint(source, kLayers, /*sparse=*/false));
    ASSIGN_OR_RETURN(const auto merger, Merger::Start(*adapter, root->path()));
    const fs::path output = root->path() / "out";
    const auto clean_up = [&] {
      fs::remove_all(output);
      return absl::OkStatus();
    };
    const auto merge = [&] { return merger->Merge("base", "out", tensors); };
    const auto copy = [&]() -> absl::Status {
      RETURN_IF_ERROR(Run({"cp", "-r", source.string(), output.string()}));
      return SyncAll(output);
    };
    const Contestant contestants[] = {{merge, clean_up}, {copy, clean_up}};
    ASSIGN_OR_RETURN(const std::vector<Timing> timings,
                     MeasureInTurns(context.quick ? kQuick : kFull, contestants));
    context.report.Add({"merge",
                        "MergeCheckpoint",
                        fmt::format("{:.1f} GB, r={}", static_cast<double>(bytes) / 1e9, kRank),
                        "bf16",
                        "cp -r + fsync",
                        {timings[0], timings[1]},
                        {kTimeBar, {}}});
  }
  context.report.Begin("merge", "peak over what the server held before, adapter loaded",
                       Report::Columns::kFigures);
  RETURN_IF_ERROR(Memory(context, root->path(), kLayers, /*sparse=*/true));
  return context.quick ? absl::OkStatus()
                       : Memory(context, root->path(), kManyLayers, /*sparse=*/true);
}

}  // namespace adapterd::bench
