#include "bench/rpc_servers.h"

#include <fmt/format.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "bench/echo_server.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {

absl::StatusOr<std::unique_ptr<RpcServers>> RpcServers::Start() {
  std::unique_ptr<RpcServers> servers(new RpcServers());
  ASSIGN_OR_RETURN(servers->folder_, PeftFolder::Create(servers->factors_));
  const PeftFolder& folder = *servers->folder_;
  const std::vector<int> cores = CoreNumbers();
  std::optional<int> server_core;
  if (cores.size() > 1) {
    server_core = cores.back();
    servers->pinned_.emplace(cores.front());
  }
  const int threads = server_core ? 1 : UsableCores();
  servers->pool_ = std::make_unique<ThreadPool>("bench", threads, PrepareComputeThread);
  const std::filesystem::path binaries = OwnFolder();
  ASSIGN_OR_RETURN(
      servers->adapterd_,
      ChildServer::Start(
          {binaries / "adapterd", "--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0",
           "--unix-socket=" + servers->Socket("adapterd"),
           "--adapter-root=" + folder.root().string(), fmt::format("--threads={}", threads),
           fmt::format("--load={}={}", kAdapter, folder.adapter())},
          folder.root() / "adapterd.log", server_core));
  ASSIGN_OR_RETURN(servers->echo_,
                   ChildServer::Start({"/proc/self/exe", kEchoServerFlag, servers->Socket("echo")},
                                      folder.root() / "echo.log", server_core));
  return servers;
}

absl::StatusOr<std::unique_ptr<ProjectionCase>> RpcServers::KernelOf(int64_t rows) {
  return ProjectionCase::Create(kernels_, *pool_, {DType::kBF16, rows, kFeatures, kRank});
}

}  // namespace adapterd::bench
