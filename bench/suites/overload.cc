// Three times as many requests as the server can serve.
#include <fmt/format.h>

#include <optional>
#include <string>

#include "bench/closed_loop.h"
#include "bench/machine.h"
#include "bench/measure.h"
#include "bench/messages.h"
#include "bench/open_loop.h"
#include "bench/rpc_servers.h"
#include "bench/suite.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

// Much work for few bytes: one row, many projections by many adapters. Requests of many bytes load
// the transport, whose work for a refused one is that for a served one.
constexpr int kProjections = 8;
constexpr int kAdapters = 16;
constexpr int kClients = 16;  // that measure the capacity in a closed loop
constexpr double kOffered = 3;

// Bars.
constexpr double kGoodput = 0.9;  // of the capacity
constexpr double kSlower = 2;     // the p99 of what is accepted, against that at capacity
constexpr double kHealthMs = 100;
constexpr double kGrowthMB = 128;  // requests that wait, and buffers that are kept

constexpr absl::Duration kFull = absl::Seconds(60);
constexpr absl::Duration kQuick = absl::Seconds(5);

v1::ApplyProjectionRequest HeavyRequest(const Tensor& input) {
  v1::ApplyProjectionRequest request = ApplyRequest(RpcServers::kAdapter, input);
  request.clear_adapter();
  v1::Segment& segment = *request.add_segments();
  for (int i = 0; i < kAdapters; ++i) segment.add_adapters()->set_name(RpcServers::kAdapter);
  while (request.projections_size() < kProjections) {
    *request.add_projections() = request.projections(0);
  }
  return request;
}

}  // namespace

absl::Status RunOverloadSuite(SuiteContext& context) {
  const absl::Duration time = context.quick ? kQuick : kFull;
  context.report.Begin(
      "overload",
      fmt::format("an open loop of {} s at {}x what {} clients in a closed loop get",
                  absl::ToInt64Seconds(time), kOffered, kClients),
      Report::Columns::kFigures);
  ASSIGN_OR_RETURN(const auto servers, RpcServers::Start());
  const std::string& address = servers->adapterd().address();
  const std::string process = std::to_string(servers->adapterd().pid());
  const Tensor input = RandomMatrix(DType::kBF16, 1, RpcServers::kFeatures, 1, 3);
  const grpc::ByteBuffer request = Serialized(HeavyRequest(input));
  grpc::ByteBuffer reply;
  RawClient client(address);
  RETURN_IF_ERROR(client.Apply(request, 0, reply));

  ClosedLoop closed(address, kClients);
  RETURN_IF_ERROR(closed.Run(time / 4, request, reply.Length()));
  const double capacity = static_cast<double>(closed.SortedLatenciesUs().size()) / closed.seconds();
  ASSIGN_OR_RETURN(const OpenLoopResult full,
                   RunOpenLoop(address, capacity, time, request, reply.Length()));
  ASSIGN_OR_RETURN(const int64_t before, AnonymousBytes(process));
  HealthProbe health(address);
  ASSIGN_OR_RETURN(const OpenLoopResult over,
                   RunOpenLoop(address, kOffered * capacity, time, request, reply.Length()));
  ASSIGN_OR_RETURN(const double health_ms, health.SlowestMs());
  ASSIGN_OR_RETURN(const int64_t after, AnonymousBytes(process));

  const std::string shape = fmt::format("m=1 d={} r={}, {} x {} adapters", RpcServers::kFeatures,
                                        RpcServers::kRank, kProjections, kAdapters);
  const auto add = [&](const std::string& name, double value, const std::string& unit,
                       std::optional<double> at_least = {}, std::optional<double> at_most = {}) {
    context.report.Add(Figure{"overload", name, shape, value, unit, at_least, at_most});
  };
  const double p99 = Percentile(full.accepted_us, 0.99) / 1000;
  const double over_p99 = Percentile(over.accepted_us, 0.99) / 1000;
  add("capacity", capacity, "1/s");
  add("p99 at capacity", p99, "ms");
  add("goodput of the capacity", over.answers_per_second / capacity, "x", kGoodput);
  add("p99 of what is accepted", over_p99, "ms");
  add("p99 against that at capacity", over_p99 / p99, "x", {}, kSlower);
  add("refused", static_cast<double>(over.refused), "calls", 1);
  add("slowest health check", health_ms, "ms", {}, kHealthMs);
  add("RssAnon growth", static_cast<double>(after - before) / 1e6, "MB", {}, kGrowthMB);
  return absl::OkStatus();
}

}  // namespace adapterd::bench
