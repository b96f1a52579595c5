#include "bench/stream_client.h"

#include <fmt/format.h>

#include <chrono>
#include <deque>

#include "bench/echo_server.h"
#include "bench/raw_client.h"
#include "core/base/status_macros.h"

namespace adapterd::bench {
namespace {

constexpr char kMethod[] = "/adapterd.v1.ProjectionService/StreamProjections";
constexpr std::chrono::minutes kDeadline{10};
constexpr uint8_t kIdTag = 1 << 3;  // field 1, a varint: of one byte, for ids up to 127

// What operations are told apart by.
void* const kStarted = reinterpret_cast<void*>(1);
void* const kWritten = reinterpret_cast<void*>(2);
void* const kRead = reinterpret_cast<void*>(3);
void* const kFinished = reinterpret_cast<void*>(4);

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
  client->stream_->StartCall(kStarted);
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
  stream_->Finish(&status, kFinished);
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok) && tag != kFinished) {
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

absl::Status StreamClient::Await(void** tag) {
  bool ok = false;
  if (queue_.Next(tag, &ok) && ok) return absl::OkStatus();
  return absl::InternalError("the stream ended: " + End().ToString());
}

absl::StatusOr<size_t> StreamClient::AnsweredIndex(size_t requests) const {
  if (reply_bytes_ != 0 && reply_.Length() != reply_bytes_) {
    return absl::InternalError(
        fmt::format("expected a reply of {} bytes, found {}", reply_bytes_, reply_.Length()));
  }
  std::vector<grpc::Slice> slices;
  const bool is_valid = reply_.Dump(&slices).ok() && !slices.empty() && slices[0].size() > 1 &&
                        slices[0].begin()[0] == kIdTag;
  const size_t id = is_valid ? slices[0].begin()[1] : 0;
  if (id >= 1 && id <= requests) return id - 1;
  return absl::InternalError("a reply without the id of a request");
}

absl::Status StreamClient::Exchange(const std::vector<grpc::ByteBuffer>& requests, int count) {
  std::deque<size_t> to_write;
  int sent = 0;
  const auto enqueue = [&](size_t index) {
    if (sent == count) return;
    ++sent;
    to_write.push_back(index);
  };
  for (size_t i = 0; i < requests.size(); ++i) enqueue(i);
  stream_->Read(&reply_, kRead);
  for (int received = 0; received < count;) {
    if (!writing_ && !to_write.empty()) {
      stream_->Write(requests[to_write.front()], kWritten);
      to_write.pop_front();
      writing_ = true;
    }
    void* tag = nullptr;
    RETURN_IF_ERROR(Await(&tag));
    if (tag == kWritten) {
      writing_ = false;
      continue;
    }
    ASSIGN_OR_RETURN(const size_t index, AnsweredIndex(requests.size()));
    enqueue(index);
    if (++received < count) stream_->Read(&reply_, kRead);
  }
  return absl::OkStatus();
}

}  // namespace adapterd::bench
