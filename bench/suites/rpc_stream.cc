// StreamProjections with several requests in flight.
#include <fmt/format.h>

#include <memory>
#include <vector>

#include "adapterd/v1/projection_service.pb.h"
#include "bench/messages.h"
#include "bench/stream_client.h"
#include "bench/suites/rpc.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr int kInFlight = 8;
constexpr int kMessages = 64;  // of one timing: the stream fills and drains once
constexpr Bars kBars{1.3, {}};
constexpr MeasureOptions kFull{absl::Seconds(6), 11, /*cpu_time=*/false};
constexpr MeasureOptions kQuick{absl::Seconds(1), 5, /*cpu_time=*/false};

std::vector<grpc::ByteBuffer> Requests(const Tensor& input) {
  std::vector<grpc::ByteBuffer> requests;
  requests.reserve(kInFlight);
  for (int id = 1; id <= kInFlight; ++id) {
    v1::StreamProjectionsRequest request;
    request.set_request_id(id);
    *request.mutable_request() = ApplyRequest(RpcServers::kAdapter, input);
    requests.push_back(Serialized(request));
  }
  return requests;
}

absl::Status Verify(const Tensor& input, const Factors& factors, const grpc::ByteBuffer& reply) {
  v1::StreamProjectionsResponse response;
  RETURN_IF_ERROR(Parse(reply, response));
  if (!response.has_response()) return absl::InternalError("the reply is an error");
  return VerifyApplyResponse(input, factors, response.response());
}

}  // namespace

absl::Status RunStreams(SuiteContext& context, RpcServers& servers) {
  const Tensor input = RandomMatrix(DType::kBF16, 1, RpcServers::kFeatures, 1, 3);
  const std::vector<grpc::ByteBuffer> requests = Requests(input);
  ASSIGN_OR_RETURN(const auto first, StreamClient::Open(servers.adapterd().address(), 0));
  RETURN_IF_ERROR(first->Exchange(requests, kInFlight));
  RETURN_IF_ERROR(Verify(input, servers.factors(), first->last_reply()));
  const size_t reply_bytes = first->last_reply().Length();

  ASSIGN_OR_RETURN(const auto ours, StreamClient::Open(servers.adapterd().address(), reply_bytes));
  ASSIGN_OR_RETURN(const auto echo, StreamClient::Open(servers.echo(), reply_bytes));
  ASSIGN_OR_RETURN(
      const Comparison comparison,
      MeasureAlternating(
          context.quick ? kQuick : kFull, [&] { return ours->Exchange(requests, kMessages); },
          [&] { return echo->Exchange(requests, kMessages); }));
  const ProjectionShape shape = {DType::kBF16, 1, RpcServers::kFeatures, RpcServers::kRank};
  context.report.Add({"rpc",
                      "StreamProjections",
                      shape.Describe(),
                      LowerName(shape.dtype),
                      fmt::format("raw stream echo, {} in flight", kInFlight),
                      {comparison.ours / kMessages, comparison.reference / kMessages},
                      kBars});
  return absl::OkStatus();
}

}  // namespace adapterd::bench
