#include "service/projection_stream.h"

#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/status_convert.h"

namespace adapterd {
namespace {

grpc::ByteBuffer ReplyOf(uint64_t request_id,
                         absl::StatusOr<ProjectionRequest::Response> response) {
  TensorMessage<v1::StreamProjectionsResponse> reply;
  reply.message.set_request_id(request_id);
  if (response.ok()) {
    *reply.message.mutable_response() = std::move(response->message);
    reply.payloads = std::move(response->payloads);
  } else {
    const absl::Status& status = response.status();
    v1::ProjectionError& error = *reply.message.mutable_error();
    error.set_code(static_cast<int>(status.code()));
    const std::string reason(ReasonName(GetErrorDetails(status).reason));
    error.set_reason(reason);
    error.set_message(ClampUtf8(std::string(status.message()), kMaxErrorMessageBytes));
  }
  return std::move(reply).Join();
}

}  // namespace

ProjectionStream::ProjectionStream(DataPlane& plane, LongCalls& streams, RpcMetrics& metrics,
                                   grpc::CallbackServerContext* context)
    : plane_(plane),
      streams_(streams),
      context_(context),
      record_(plane.environment, metrics, Plane::kData, context, 0) {}

std::shared_ptr<ProjectionStream> ProjectionStream::Start(DataPlane& plane, LongCalls& streams,
                                                          RpcMetrics& metrics,
                                                          grpc::CallbackServerContext* context) {
  std::shared_ptr<ProjectionStream> stream(new ProjectionStream(plane, streams, metrics, context));
  stream->self_ = stream;
  if (const absl::Status status = stream->Begin(); !status.ok()) stream->End(status);
  stream->Step();
  return stream;
}

absl::Status ProjectionStream::Begin() {
  RETURN_IF_ERROR(record_.Admit());
  return streams_.Add(shared_from_this());
}

void ProjectionStream::OnReadDone(bool ok) {
  const auto bytes = static_cast<int64_t>(incoming_.Length());
  absl::StatusOr<std::shared_ptr<ProjectionRequest>> taken = nullptr;
  if (ok) taken = Take();
  {
    absl::MutexLock lock(&mutex_);
    reading_ = false;
    half_closed_ = half_closed_ || !ok;
    if (end_.ok()) end_ = taken.status();
  }
  Step();  // reads the next while this one is worked on
  if (taken.ok() && *taken != nullptr) (*taken)->Start(bytes);
}

absl::StatusOr<std::shared_ptr<ProjectionRequest>> ProjectionStream::Take() {
  const auto bytes = static_cast<int64_t>(incoming_.Length());
  record_.AddRequestBytes(bytes);
  RETURN_IF_ERROR(record_.CheckAllowed());
  auto slot = std::make_shared<Slot>();
  TensorMessage<v1::StreamProjectionsRequest> message;
  RETURN_IF_ERROR(GuardedCall([&] { return message.Split(incoming_, plane_.buffers); }));
  incoming_.Clear();
  slot->request_id = message.message.request_id();
  auto read = [this, bytes,
               message = std::move(message)](ProjectionRequest::Request& request) mutable {
    request.message = std::move(*message.message.mutable_request());
    request.payloads = std::move(message.payloads);
    return plane_.environment.CheckMessageSize("message", bytes);
  };
  auto done = [self = shared_from_this(),
               slot](absl::StatusOr<ProjectionRequest::Response> response) {
    self->Answer(slot, std::move(response));
  };
  auto request = std::make_shared<ProjectionRequest>(plane_, record_.deadline(), std::move(read),
                                                     std::move(done));
  absl::MutexLock lock(&mutex_);
  if (!end_.ok()) return nullptr;
  slot->request = request;
  slots_.push_back(std::move(slot));
  return request;
}

void ProjectionStream::Answer(const std::shared_ptr<Slot>& slot,
                              absl::StatusOr<ProjectionRequest::Response> response) {
  if (!response.ok()) {
    plane_.environment.metrics.Rejected(ReasonName(GetErrorDetails(response.status()).reason));
  }
  grpc::ByteBuffer reply = ReplyOf(slot->request_id, std::move(response));
  {
    absl::MutexLock lock(&mutex_);
    slot->reply = std::move(reply);
    slot->request = nullptr;
  }
  Step();
}

void ProjectionStream::Step() {
  bool read = false;
  bool write = false;
  bool more = false;
  {
    absl::MutexLock lock(&mutex_);
    ++users_;
    while (abandoned_ && !slots_.empty() && slots_.front()->reply) slots_.pop_front();
    write = !writing_ && !slots_.empty() && slots_.front()->reply.has_value();
    if (write) {
      outgoing_ = *std::move(slots_.front()->reply);
      slots_.pop_front();
      writing_ = true;
      // Not the first: it takes the call's metadata along, and is done only when those are sent.
      more = written_bytes_ > 0 && !slots_.empty() && slots_.front()->reply.has_value();
      written_bytes_ += static_cast<int64_t>(outgoing_.Length());
    }
    read = !reading_ && !Ends() && slots_.size() < kMaxStreamedRequests;
    reading_ = reading_ || read;
  }
  // Outside the lock: gRPC may answer on this thread before it returns.
  grpc::WriteOptions options;
  if (more) options.set_buffer_hint();  // one system call for all that are ready
  if (write) StartWrite(&outgoing_, options);
  if (read) StartRead(&incoming_);
  Leave();
}

void ProjectionStream::Leave() {
  absl::Status end;
  int64_t bytes = 0;
  {
    absl::MutexLock lock(&mutex_);
    --users_;
    if (!Ends() || !slots_.empty() || writing_ || users_ > 0 || finished_) return;
    finished_ = true;
    end = end_;
    bytes = written_bytes_;
  }
  Finish(record_.End(end, bytes));
}

void ProjectionStream::OnWriteDone(bool ok) {
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
  }
  if (!ok) Abandon();
  Step();
}

void ProjectionStream::End(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (end_.ok()) end_ = status;
  }
  Step();
}

void ProjectionStream::Cut() {
  {
    absl::MutexLock lock(&mutex_);
    if (finished_ || (slots_.empty() && !writing_)) return;
    ++users_;
  }
  context_->TryCancel();
  Leave();
}

void ProjectionStream::Abandon() {
  std::vector<std::shared_ptr<ProjectionRequest>> requests;
  {
    absl::MutexLock lock(&mutex_);
    abandoned_ = true;
    if (end_.ok()) end_ = absl::CancelledError("the caller went away");
    for (const std::shared_ptr<Slot>& slot : slots_) {
      if (slot->request != nullptr) requests.push_back(slot->request);
    }
  }
  for (const std::shared_ptr<ProjectionRequest>& request : requests) request->Cancel();
}

void ProjectionStream::OnCancel() {
  const std::shared_ptr<ProjectionStream> self = shared_from_this();  // not freed before the end
  record_.OnCancel();
  Abandon();
  Step();
}

void ProjectionStream::OnDone() {
  const std::shared_ptr<ProjectionStream> self = std::move(self_);
  streams_.Remove(self);
  record_.OnDone();
  record_.Left();
}

}  // namespace adapterd
