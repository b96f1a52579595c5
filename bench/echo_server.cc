#include "bench/echo_server.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "adapterd/v1/merge_service.grpc.pb.h"
#include "adapterd/v1/projection_service.grpc.pb.h"

namespace adapterd::bench {
namespace {

constexpr int kExitFailed = 2;
// As the server has it.
constexpr int kMaxStreamsPerConnection = 1024;

using Metadata = std::multimap<grpc::string_ref, grpc::string_ref>;

std::optional<size_t> ReplyBytes(const Metadata& metadata) {
  const auto it = metadata.find(kReplyBytesHeader);
  if (it == metadata.end()) return std::nullopt;
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

grpc::ServerUnaryReactor* Echo(grpc::CallbackServerContext* context,
                               const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const std::optional<size_t> bytes = ReplyBytes(context->client_metadata());
  if (bytes) *response = Resized(*request, *bytes);
  reactor->Finish(bytes ? grpc::Status::OK
                        : grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, kReplyBytesHeader));
  return reactor;
}

class EchoMerges final
    : public v1::MergeService::WithRawCallbackMethod_Merge<v1::MergeService::Service> {
  grpc::ServerUnaryReactor* Merge(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    return Echo(context, request, response);
  }
};

// Answers every message in order, and reads the next ones meanwhile. Deletes itself at the end.
class EchoStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit EchoStream(std::optional<size_t> reply_bytes) : reply_bytes_(reply_bytes) {
    if (reply_bytes_) {
      StartRead(&request_);
    } else {
      Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, kReplyBytesHeader));
    }
  }

 private:
  void OnReadDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    if (ok) {
      replies_.push_back(Resized(request_, *reply_bytes_));
      StartRead(&request_);
      if (replies_.size() == 1) StartWrite(&replies_.front());
    } else {
      read_all_ = true;
      if (replies_.empty()) Finish(grpc::Status::OK);
    }
  }

  void OnWriteDone(bool /*ok*/) override {
    absl::MutexLock lock(&mutex_);
    replies_.pop_front();
    if (!replies_.empty()) {
      StartWrite(&replies_.front());
    } else if (read_all_) {
      Finish(grpc::Status::OK);
    }
  }

  void OnDone() override { delete this; }

  const std::optional<size_t> reply_bytes_;
  grpc::ByteBuffer request_;
  absl::Mutex mutex_;
  std::deque<grpc::ByteBuffer> replies_ ABSL_GUARDED_BY(mutex_);  // the first is being written
  bool read_all_ ABSL_GUARDED_BY(mutex_) = false;
};

class EchoProjections final : public v1::ProjectionService::WithRawCallbackMethod_ApplyProjection<
                                  v1::ProjectionService::WithRawCallbackMethod_StreamProjections<
                                      v1::ProjectionService::Service>> {
  grpc::ServerUnaryReactor* ApplyProjection(grpc::CallbackServerContext* context,
                                            const grpc::ByteBuffer* request,
                                            grpc::ByteBuffer* response) override {
    return Echo(context, request, response);
  }

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StreamProjections(
      grpc::CallbackServerContext* context) override {
    return new EchoStream(ReplyBytes(context->client_metadata()));
  }
};

}  // namespace

int RunEchoServer(const std::string& unix_socket) {
  EchoProjections projections;
  EchoMerges merges;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.AddListeningPort("unix:" + unix_socket, grpc::InsecureServerCredentials());
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.SetMaxReceiveMessageSize(-1);
  builder.SetMaxSendMessageSize(-1);
  builder.SetDefaultCompressionAlgorithm(GRPC_COMPRESS_NONE);
  builder.RegisterService(&projections);
  builder.RegisterService(&merges);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) return kExitFailed;
  fmt::print("echo ready grpc=127.0.0.1:{}\n", port);
  std::fflush(stdout);
  server->Wait();
  return kExitFailed;
}

}  // namespace adapterd::bench
