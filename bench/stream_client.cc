#include "bench/stream_client.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdint>

#include "bench/echo_server.h"
#include "bench/raw_client.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr char kMethod[] = "/adapterd.v1.ProjectionService/StreamProjections";
constexpr std::chrono::minutes kDeadline{10};

// What operations are told apart by.
enum class Operation : intptr_t { kStart, kWrite, kRead, kFinish };
void* Tag(Operation operation) { return reinterpret_cast<void*>(operation); }

}  // namespace

StreamClient::StreamClient(const std::string& address, size_t reply_bytes)
    : reply_bytes_(reply_bytes) {
  context_.set_deadline(std::chrono::system_clock::now() + kDeadline);
  context_.set_wait_for_ready(true);
  context_.AddMetadata(kReplyBytesHeader, fmt::format("{}", reply_bytes));
  grpc::GenericStub stub(ConnectAlone(address));
  stream_ = stub.PrepareCall(&context_, kMethod, &queue_);
}

absl::StatusOr<std::unique_ptr<StreamClient>> StreamClient::Open(const std::string& address,
                                                                 size_t reply_bytes) {
  std::unique_ptr<StreamClient> client(new StreamClient(address, reply_bytes));
  client->stream_->StartCall(Tag(Operation::kStart));
  void* tag = nullptr;
  RETURN_IF_ERROR(client->Await(&tag));
  return client;
}

StreamClient::~StreamClient() {
  context_.TryCancel();
  if (!ended_) (void)End();
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

absl::Status StreamClient::End() {
  ended_ = true;
  grpc::Status status;
  stream_->Finish(&status, Tag(Operation::kFinish));
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok) && tag != Tag(Operation::kFinish)) {
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

absl::Status StreamClient::Await(void** tag) {
  bool ok = false;
  if (queue_.Next(tag, &ok) && ok) return absl::OkStatus();
  return absl::InternalError("the stream ended: " + End().ToString());
}

absl::Status StreamClient::Exchange(const std::vector<grpc::ByteBuffer>& requests, int count) {
  int written = 0;
  int received = 0;
  stream_->Read(&reply_, Tag(Operation::kRead));
  while (received < count) {
    const int in_flight = written - received;
    if (!writing_ && written < count && in_flight < static_cast<int>(requests.size())) {
      stream_->Write(requests[written % requests.size()], Tag(Operation::kWrite));
      ++written;
      writing_ = true;
    }
    void* tag = nullptr;
    RETURN_IF_ERROR(Await(&tag));
    if (tag == Tag(Operation::kWrite)) {
      writing_ = false;
      continue;
    }
    if (reply_bytes_ != 0 && reply_.Length() != reply_bytes_) {
      return absl::InternalError(
          fmt::format("expected a reply of {} bytes, found {}", reply_bytes_, reply_.Length()));
    }
    if (++received < count) stream_->Read(&reply_, Tag(Operation::kRead));
  }
  return absl::OkStatus();
}

}  // namespace adapterd::bench
