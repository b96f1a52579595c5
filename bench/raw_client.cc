#include "bench/raw_client.h"

#include <fmt/format.h>

#include <chrono>

#include "bench/echo_server.h"

namespace adapterd::bench {
namespace {

constexpr char kHealth[] = "/grpc.health.v1.Health/Check";
constexpr char kMerge[] = "/adapterd.v1.MergeService/Merge";
constexpr std::chrono::seconds kDeadline{60};

}  // namespace

std::shared_ptr<grpc::Channel> ConnectAlone(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

RawClient::RawClient(const std::string& address) : stub_(ConnectAlone(address)) {}

RawClient::~RawClient() {
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

absl::Status RawClient::Apply(const grpc::ByteBuffer& request, size_t reply_bytes,
                              grpc::ByteBuffer& reply) {
  return Call(kApplyMethod, request, reply_bytes, reply);
}

absl::Status RawClient::Merge(const grpc::ByteBuffer& request, size_t reply_bytes,
                              grpc::ByteBuffer& reply) {
  return Call(kMerge, request, reply_bytes, reply);
}

absl::Status RawClient::CheckHealth() {
  grpc::Slice empty;  // the message of a request for the whole server
  const grpc::ByteBuffer request(&empty, 1);
  grpc::ByteBuffer reply;
  return Call(kHealth, request, 0, reply);
}

absl::Status RawClient::Call(const char* method, const grpc::ByteBuffer& request,
                             size_t reply_bytes, grpc::ByteBuffer& reply) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDeadline);
  context.set_wait_for_ready(true);
  context.AddMetadata(kReplyBytesHeader, fmt::format("{}", reply_bytes));
  const auto call = stub_.PrepareUnaryCall(&context, method, request, &queue_);
  call->StartCall();
  grpc::Status status;
  call->Finish(&reply, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  if (!queue_.Next(&tag, &ok)) return absl::InternalError("the completion queue is shut down");
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }
  if (reply_bytes == 0 || reply.Length() == reply_bytes) return absl::OkStatus();
  return absl::InternalError(
      fmt::format("expected a reply of {} bytes, found {}", reply_bytes, reply.Length()));
}

}  // namespace adapterd::bench
