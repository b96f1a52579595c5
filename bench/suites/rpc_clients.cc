// Several clients at once: latency, throughput, and memory in the long run.
#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "bench/closed_loop.h"
#include "bench/machine.h"
#include "bench/messages.h"
#include "bench/suites/rpc.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int kClients = 8;
constexpr int64_t kRows = 16;
constexpr absl::Duration kSlice = absl::Milliseconds(500);
constexpr int kSlices = 60;
constexpr int kQuickSlices = 10;
constexpr double kP99OfP50 = 5;
constexpr Bars kThroughputBars{1 / 0.9, {}};

constexpr int64_t kCalls = 100000;
constexpr int64_t kQuickCalls = 10000;
constexpr int64_t kWarmUpShare = 5;  // of the calls, before memory is looked at
constexpr double kGrowthMB = 16;

// Of each of the clients together: one call every so often.
Timing PerCall(const ClosedLoop& loop) {
  const std::vector<double> latencies_us = loop.SortedLatenciesUs();
  Timing timing = Timing::Of(1e6 * loop.seconds() / static_cast<double>(latencies_us.size()));
  timing.repetitions = static_cast<int64_t>(latencies_us.size());
  return timing;
}

// Slices of the server and of the echo take turns.
absl::Status RunClosedLoop(SuiteContext& context, RpcServers& servers) {
  const Tensor input = RandomMatrix(DType::kBF16, kRows, RpcServers::kFeatures, 1, 3);
  const grpc::ByteBuffer request = MakeApplyRequest(RpcServers::kAdapter, input);
  grpc::ByteBuffer reply;
  RawClient client(servers.adapterd().address());
  RETURN_IF_ERROR(client.Apply(request, 0, reply));
  RETURN_IF_ERROR(VerifyApplyReply(input, servers.factors(), reply));
  ASSIGN_OR_RETURN(const auto kernel, servers.KernelOf(kRows));
  const auto compute = [&] { return kernel->Run(); };
  const Contestant contestants[] = {{compute}};
  ASSIGN_OR_RETURN(const std::vector<Timing> kernel_timing, MeasureInTurns({kSlice}, contestants));
  const Timing kernel_cpu = Timing::Of(*kernel_timing[0].cpu_us);

  ClosedLoop ours(servers.adapterd().address(), kClients);
  ClosedLoop echo(servers.echo(), kClients);
  for (int i = 0; i < (context.quick ? kQuickSlices : kSlices); ++i) {
    RETURN_IF_ERROR(ours.Run(kSlice, request, reply.Length()));
    RETURN_IF_ERROR(echo.Run(kSlice, request, reply.Length()));
  }
  const std::vector<double> latencies_us = ours.SortedLatenciesUs();
  const double p50 = Percentile(latencies_us, 0.5);
  const double p99 = Percentile(latencies_us, 0.99);
  const std::string shape = kernel->shape().Describe();
  const Timing echo_timing = PerCall(echo);
  Timing reference = echo_timing + kernel_cpu;
  reference.repetitions = echo_timing.repetitions;
  context.report.Add({"rpc",
                      fmt::format("{} clients, per call", kClients),
                      shape,
                      "bf16",
                      "raw echo + CPU of the kernel",
                      {PerCall(ours), reference},
                      kThroughputBars});
  const std::string name = fmt::format("{} clients in a closed loop", kClients);
  const auto add = [&](const std::string& what, double value, const std::string& unit) {
    context.report.Add(Figure{"rpc", name + ", " + what, shape, value, unit, {}, {}});
  };
  add("p50", p50, "us");
  add("p99", p99, "us");
  context.report.Add(Figure{"rpc", name + ", p99 of p50", shape, p99 / p50, "x", {}, kP99OfP50});
  return absl::OkStatus();
}

// Requests of many shapes, in an order that repeats only after all of them.
std::vector<grpc::ByteBuffer> MixedRequests() {
  std::vector<grpc::ByteBuffer> requests;
  for (const int64_t rows : {1, 40, 2, 64, 7, 16, 3, 128, 1, 33, 5, 8, 17}) {
    for (int modules = 1; modules <= 3; ++modules) {
      for (const DType dtype : {DType::kBF16, DType::kF32}) {
        const Tensor input = RandomMatrix(dtype, rows, RpcServers::kFeatures, 1, 3);
        requests.push_back(MakeApplyRequest(RpcServers::kAdapter, input, modules));
      }
    }
  }
  return requests;
}

absl::Status RunMemory(SuiteContext& context, RpcServers& servers) {
  const int64_t calls = context.quick ? kQuickCalls : kCalls;
  const std::vector<grpc::ByteBuffer> requests = MixedRequests();
  const std::string process = std::to_string(servers.adapterd().pid());
  ClosedLoop loop(servers.adapterd().address(), kClients);
  RETURN_IF_ERROR(loop.Send(calls / kWarmUpShare, requests));
  ASSIGN_OR_RETURN(const int64_t warm, AnonymousBytes(process));
  RETURN_IF_ERROR(loop.Send(calls, requests));
  ASSIGN_OR_RETURN(const int64_t after, AnonymousBytes(process));
  const std::string shape = fmt::format("{} calls of {} shapes", calls, requests.size());
  const auto megabytes = [](int64_t bytes) { return static_cast<double>(bytes) / 1e6; };
  context.report.Add(
      Figure{"rpc", "RssAnon of the warm server", shape, megabytes(warm), "MB", {}, {}});
  context.report.Add(
      Figure{"rpc", "RssAnon growth", shape, megabytes(after - warm), "MB", {}, kGrowthMB});
  return absl::OkStatus();
}

}  // namespace

absl::Status RunClients(SuiteContext& context, RpcServers& servers) {
  RETURN_IF_ERROR(RunClosedLoop(context, servers));
  return RunMemory(context, servers);
}

}  // namespace adapterd::bench
