// ApplyProjection, one call at a time.
#include <string>
#include <utility>
#include <vector>

#include "bench/messages.h"
#include "bench/raw_client.h"
#include "bench/suites/rpc.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int kQkvRows = 16;
constexpr int kQkvModules = 3;
constexpr int64_t kFewRows = 16;
constexpr Bars kBars{1.15, 1};
constexpr Bars kFewRowsBars{1.3, 1};
constexpr Bars kUnixBars{1, {}};
constexpr Bars kQkvBars{1 / 1.8, {}};
constexpr absl::Duration kTime = absl::Seconds(6);
constexpr absl::Duration kQuickTime = absl::Milliseconds(1200);

MeasureOptions Time(const SuiteContext& context) {
  MeasureOptions options{context.quick ? kQuickTime : kTime};
  options.cpu_time = false;  // other processes do the work
  return options;
}

void Add(SuiteContext& context, std::string name, int64_t rows, std::string reference,
         const Comparison& comparison, Bars bars) {
  const ProjectionShape shape = {DType::kBF16, rows, RpcServers::kFeatures, RpcServers::kRank};
  context.report.Add({"rpc", std::move(name), shape.Describe(), LowerName(shape.dtype),
                      std::move(reference), comparison, bars});
}

// The server over both transports, the echo of as many bytes, and the arithmetic, in turns.
absl::Status RunRows(SuiteContext& context, RpcServers& servers, int64_t rows) {
  RawClient tcp_client(servers.adapterd().address());
  RawClient unix_client(servers.adapterd_unix());
  RawClient echo_client(servers.echo());
  ASSIGN_OR_RETURN(const auto kernel, servers.KernelOf(rows));
  const Tensor input = RandomMatrix(DType::kBF16, rows, RpcServers::kFeatures, 1, 3);
  const grpc::ByteBuffer request = MakeApplyRequest(RpcServers::kAdapter, input);
  grpc::ByteBuffer reply;
  RETURN_IF_ERROR(unix_client.Apply(request, 0, reply));
  RETURN_IF_ERROR(VerifyApplyReply(input, servers.factors(), reply));
  RETURN_IF_ERROR(tcp_client.Apply(request, 0, reply));
  RETURN_IF_ERROR(VerifyApplyReply(input, servers.factors(), reply));
  const size_t reply_bytes = reply.Length();

  // Every call checks the size of its reply.
  const auto tcp = [&] { return tcp_client.Apply(request, reply_bytes, reply); };
  const auto unix_socket = [&] { return unix_client.Apply(request, reply_bytes, reply); };
  const auto echo = [&] { return echo_client.Apply(request, reply_bytes, reply); };
  const auto compute = [&] { return kernel->Run(); };
  const Contestant contestants[] = {{tcp}, {unix_socket}, {echo}, {compute}};
  ASSIGN_OR_RETURN(const std::vector<Timing> timings, MeasureInTurns(Time(context), contestants));
  Add(context, "ApplyProjection", rows, "raw echo", {timings[0], timings[2]}, {});
  Add(context, "ApplyProjection", rows, "raw echo + kernel", {timings[0], timings[2] + timings[3]},
      rows <= kFewRows ? kFewRowsBars : kBars);
  Add(context, "ApplyProjection, Unix", rows, "TCP", {timings[1], timings[0]}, kUnixBars);
  return absl::OkStatus();
}

// Several modules of one input: the input travels once.
absl::Status RunQkv(SuiteContext& context, RpcServers& servers) {
  RawClient client(servers.adapterd().address());
  const Tensor input = RandomMatrix(DType::kBF16, kQkvRows, RpcServers::kFeatures, 1, 3);
  const grpc::ByteBuffer together = MakeApplyRequest(RpcServers::kAdapter, input, kQkvModules);
  std::vector<grpc::ByteBuffer> apart;
  apart.reserve(kQkvModules);
  for (int i = 0; i < kQkvModules; ++i) {
    apart.push_back(MakeApplyRequest(RpcServers::kAdapter, input, 1, i));
  }
  grpc::ByteBuffer reply;
  RETURN_IF_ERROR(client.Apply(together, 0, reply));
  RETURN_IF_ERROR(VerifyApplyReply(input, servers.factors(), reply, kQkvModules));
  const auto one = [&] { return client.Apply(together, 0, reply); };
  const auto three = [&] {
    for (const grpc::ByteBuffer& request : apart) {
      RETURN_IF_ERROR(client.Apply(request, 0, reply));
    }
    return absl::OkStatus();
  };
  ASSIGN_OR_RETURN(const Comparison comparison, MeasureAlternating(Time(context), one, three));
  Add(context, "q, k, v in one call", kQkvRows, "three calls", comparison, kQkvBars);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunUnaryCalls(SuiteContext& context, RpcServers& servers) {
  for (const int64_t rows : {1, 16, 64, 512}) {
    RETURN_IF_ERROR(RunRows(context, servers, rows));
  }
  return RunQkv(context, servers);
}

}  // namespace adapterd::bench
