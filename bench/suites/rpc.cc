// ApplyProjection through the real server, over loopback TCP.
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "bench/apply_message.h"
#include "bench/child_server.h"
#include "bench/data.h"
#include "bench/echo_server.h"
#include "bench/peft_folder.h"
#include "bench/raw_client.h"
#include "bench/suite.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int64_t kFeatures = 4096;
constexpr int64_t kRank = 16;
constexpr int64_t kBarRows = 64;
constexpr double kBar = 4;
constexpr absl::Duration kTime = absl::Seconds(4);
constexpr absl::Duration kQuickTime = absl::Milliseconds(500);

// The server, and the transport alone beside it.
class Servers {
 public:
  static absl::StatusOr<std::unique_ptr<Servers>> Start() {
    auto servers = std::make_unique<Servers>();
    ASSIGN_OR_RETURN(servers->folder_, PeftFolder::Create(servers->factors_));
    const PeftFolder& folder = *servers->folder_;
    const std::filesystem::path binaries = OwnFolder();
    ASSIGN_OR_RETURN(
        servers->adapterd_,
        ChildServer::Start(
            {binaries / "adapterd", "--grpc-address=127.0.0.1:0", "--admin-address=127.0.0.1:0",
             "--adapter-root=" + folder.root().string(), "--load=bench=" + folder.adapter()},
            folder.root() / "adapterd.log"));
    ASSIGN_OR_RETURN(servers->echo_, ChildServer::Start({"/proc/self/exe", kEchoServerFlag},
                                                        folder.root() / "echo.log"));
    return servers;
  }

  const Factors& factors() const { return factors_; }
  const std::string& adapterd() const { return adapterd_->address(); }
  const std::string& echo() const { return echo_->address(); }

 private:
  const Factors factors_{DType::kBF16, kFeatures, kRank};
  std::unique_ptr<PeftFolder> folder_;
  std::unique_ptr<ChildServer> adapterd_;
  std::unique_ptr<ChildServer> echo_;
};

absl::Status RunRows(SuiteContext& context, const Servers& servers, int64_t rows) {
  RawClient client(servers.adapterd());
  RawClient echo_client(servers.echo());
  const Tensor input = RandomMatrix(DType::kBF16, rows, kFeatures, 1, 3);
  const grpc::ByteBuffer request = MakeApplyRequest("bench", input);
  grpc::ByteBuffer reply;
  RETURN_IF_ERROR(client.Apply(request, 0, reply));
  const size_t reply_bytes = reply.Length();
  RETURN_IF_ERROR(VerifyApplyReply(input, servers.factors(), reply));

  // Every call checks the size of its reply.
  const auto ours = [&] { return client.Apply(request, reply_bytes, reply); };
  const auto echo = [&] { return echo_client.Apply(request, reply_bytes, reply); };
  MeasureOptions options{context.quick ? kQuickTime : kTime};
  options.cpu_time = false;
  ASSIGN_OR_RETURN(const Comparison comparison, MeasureAlternating(options, ours, echo));
  context.report.Add({"rpc", "ApplyProjection",
                      fmt::format("m={} d={} r={}", rows, kFeatures, kRank), "bf16",
                      "raw echo of as many bytes", comparison,
                      rows == kBarRows ? std::optional<double>(kBar) : std::nullopt});
  return absl::OkStatus();
}

}  // namespace

absl::Status RunRpcSuite(SuiteContext& context) {
  context.report.Begin("rpc",
                       "one serial client over loopback TCP, raw buffers, server and echo "
                       "in processes of their own, nothing pinned");
  ASSIGN_OR_RETURN(const auto servers, Servers::Start());
  for (const int64_t rows : {1, 16, 64, 512}) RETURN_IF_ERROR(RunRows(context, *servers, rows));
  return absl::OkStatus();
}

}  // namespace adapterd::bench
