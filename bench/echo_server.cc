#include "bench/echo_server.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "adapterd/v1/projection_service.grpc.pb.h"

namespace adapterd::bench {
namespace {

constexpr int kExitFailed = 2;
// As the server has it.
constexpr int kMaxStreamsPerConnection = 1024;

std::optional<size_t> ReplyBytes(const grpc::CallbackServerContext& context) {
  const auto it = context.client_metadata().find(kReplyBytesHeader);
  if (it == context.client_metadata().end()) return std::nullopt;
  const grpc::string_ref text = it->second;
  size_t bytes = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bytes);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return bytes;
}

// The first `bytes` bytes of `request`, with zeros after its end.
grpc::ByteBuffer Resized(const grpc::ByteBuffer& request, size_t bytes) {
  std::vector<grpc::Slice> all;
  request.Dump(&all);
  std::vector<grpc::Slice> kept;
  for (const grpc::Slice& slice : all) {
    const size_t take = std::min(slice.size(), bytes);
    if (take > 0) kept.push_back(take == slice.size() ? slice : slice.sub(0, take));
    bytes -= take;
  }
  if (bytes > 0) kept.emplace_back(std::string(bytes, '\0'));
  return grpc::ByteBuffer(kept.data(), kept.size());
}

class EchoService final : public v1::ProjectionService::WithRawCallbackMethod_ApplyProjection<
                              v1::ProjectionService::Service> {
  grpc::ServerUnaryReactor* ApplyProjection(grpc::CallbackServerContext* context,
                                            const grpc::ByteBuffer* request,
                                            grpc::ByteBuffer* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const std::optional<size_t> bytes = ReplyBytes(*context);
    if (bytes) *response = Resized(*request, *bytes);
    reactor->Finish(bytes ? grpc::Status::OK
                          : grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, kReplyBytesHeader));
    return reactor;
  }
};

}  // namespace

int RunEchoServer() {
  EchoService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.SetMaxReceiveMessageSize(-1);
  builder.SetMaxSendMessageSize(-1);
  builder.SetDefaultCompressionAlgorithm(GRPC_COMPRESS_NONE);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) return kExitFailed;
  fmt::print("echo ready grpc=127.0.0.1:{}\n", port);
  std::fflush(stdout);
  server->Wait();
  return kExitFailed;
}

}  // namespace adapterd::bench
