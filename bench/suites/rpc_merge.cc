// Merge of one weight, over loopback TCP.
#include <fmt/format.h>

#include <string>
#include <vector>

#include "bench/messages.h"
#include "bench/raw_client.h"
#include "bench/suites/rpc.h"
#include "core/base/status_macros.h"
#include "core/compute/merge.h"

namespace adapterd::bench {
namespace {

constexpr float kTrainedWeight = 0.05f;
constexpr Bars kBars{1.15, {}};
constexpr MeasureOptions kFull{absl::Seconds(15), 11, /*cpu_time=*/false};
constexpr MeasureOptions kQuick{absl::Seconds(2), 5, /*cpu_time=*/false};

}  // namespace

absl::Status RunMergeCalls(SuiteContext& context, RpcServers& servers) {
  constexpr int64_t kFeatures = RpcServers::kFeatures;
  RawClient client(servers.adapterd().address());
  RawClient echo_client(servers.echo());
  const Factors& factors = servers.factors();
  const Tensor weight = RandomMatrix(DType::kBF16, kFeatures, kFeatures, kTrainedWeight, 3);
  const grpc::ByteBuffer request = MakeMergeRequest(RpcServers::kAdapter, weight);
  grpc::ByteBuffer reply;
  RETURN_IF_ERROR(client.Merge(request, 0, reply));
  RETURN_IF_ERROR(VerifyMergeReply(weight, factors, reply));
  const size_t reply_bytes = reply.Length();

  OutputMatrix merged(DType::kBF16, kFeatures, kFeatures);
  const MergeTerm term{factors.a_view(), factors.b_view(), factors.scale};
  const auto merge = [&] { return client.Merge(request, reply_bytes, reply); };
  const auto echo = [&] { return echo_client.Merge(request, reply_bytes, reply); };
  const auto compute = [&] {
    return MergeWeight(servers.kernels(), servers.pool(), AsMatrix(weight), {&term, 1},
                       MergeOptions(), merged.view(), Cancellation())
        .status();
  };
  const Contestant contestants[] = {{merge}, {echo}, {compute}};
  ASSIGN_OR_RETURN(const std::vector<Timing> timings,
                   MeasureInTurns(context.quick ? kQuick : kFull, contestants));
  const auto add = [&](const std::string& reference, const Timing& timing, Bars bars) {
    context.report.Add({"rpc",
                        "Merge",
                        fmt::format("{0}x{0} r={1}", kFeatures, RpcServers::kRank),
                        "bf16",
                        reference,
                        {timings[0], timing},
                        bars});
  };
  add("raw echo", timings[1], {});
  add("raw echo + MergeWeight", timings[1] + timings[2], kBars);
  return absl::OkStatus();
}

}  // namespace adapterd::bench
