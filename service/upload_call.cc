#include "service/upload_call.h"

#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"

namespace adapterd {
namespace {

Error Invalid(const std::string& field, const std::string& what) {
  return Error(Reason::kInvalidField, field + ": " + what).With("field", field);
}

}  // namespace

grpc::ServerReadReactor<v1::UploadAdapterRequest>* AdapterService::UploadAdapter(
    grpc::CallbackServerContext* context, v1::UploadAdapterResponse* response) {
  return UploadCall::Start(plane_, upload_, context, response).get();
}

std::shared_ptr<UploadCall> UploadCall::Start(ControlPlane& plane, RpcMetrics& metrics,
                                              grpc::CallbackServerContext* context,
                                              v1::UploadAdapterResponse* response) {
  std::shared_ptr<UploadCall> call(new UploadCall(plane, metrics, context, response));
  call->self_ = call;
  const absl::Status status = call->Admit();
  if (status.ok()) {
    call->StartRead(&call->message_);
  } else {
    call->End(status);
  }
  return call;
}

UploadCall::UploadCall(ControlPlane& plane, RpcMetrics& metrics,
                       grpc::CallbackServerContext* context, v1::UploadAdapterResponse* response)
    : plane_(plane),
      response_(response),
      record_(plane.environment, metrics, Plane::kControl, context, 0) {}

absl::Status UploadCall::Admit() const {
  RETURN_IF_ERROR(record_.Admit());
  if (plane_.draining) return Error(Reason::kDraining, "the server is shutting down");
  if (plane_.content == nullptr) {
    return Error(Reason::kNoDataDir,
                 "there is no folder to write uploads to: the server needs --data-dir, or a folder "
                 "for temporary files that it may write to");
  }
  return absl::OkStatus();
}

void UploadCall::OnReadDone(bool ok) {
  plane_.io_pool.Submit([call = shared_from_this(), ok] {
    if (ok) {
      call->TakeMessage();
    } else {
      call->CommitAndLoad();
    }
  });
}

void UploadCall::TakeMessage() {
  const absl::Status status = GuardedCall([this] { return Take(); });
  if (!status.ok()) return End(status);
  StartRead(&message_);
}

absl::Status UploadCall::Take() {
  RETURN_IF_ERROR(record_.cancellation().Check());
  const auto bytes = static_cast<int64_t>(message_.ByteSizeLong());
  record_.AddRequestBytes(bytes);
  RETURN_IF_ERROR(record_.CheckMessageSize("message", bytes));
  switch (message_.content_case()) {
    case v1::UploadAdapterRequest::kStart:
      return TakeStart(message_.start());
    case v1::UploadAdapterRequest::kChunk:
      return TakeChunk(message_.chunk());
    default:
      return Invalid("content", "expected start or chunk, found neither");
  }
}

absl::Status UploadCall::TakeStart(const v1::UploadStart& start) {
  if (incoming_ != nullptr) {
    return Invalid("start", "expected once, as the first message, found a second one");
  }
  ASSIGN_OR_RETURN(load_, LoadRequestFromProto(start));
  ASSIGN_OR_RETURN(incoming_, plane_.content->Begin(plane_.max_upload_bytes));
  return absl::OkStatus();
}

absl::Status UploadCall::TakeChunk(const v1::UploadChunk& chunk) {
  if (incoming_ == nullptr) return Invalid("start", "expected as the first message, found chunk");
  return incoming_->Append(chunk.file_name(), chunk.data());
}

void UploadCall::CommitAndLoad() {
  v1::UploadAdapterRequest().Swap(&message_);  // its memory is not needed for the load
  const absl::Status status = GuardedCall([this] { return Commit(); });
  if (!status.ok()) return Discard(status);
  load_.source.stored = stored_.key();
  load_.reloadable = !plane_.content->temporary();
  auto ticket = plane_.registry.Load(
      load_,
      [call = shared_from_this()](absl::StatusOr<LoadResult> result) { call->Loaded(result); });
  record_.WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
}

absl::Status UploadCall::Commit() {
  // A broken stream ends like one that the client closed. Which of the two it was, is known soon
  // after: before the files are on disk, or while they are loaded, which is given up then. Should
  // even that be over, then what arrived was a whole adapter.
  RETURN_IF_ERROR(record_.cancellation().Check());
  if (incoming_ == nullptr) return Invalid("start", "expected as the first message, found the end");
  ASSIGN_OR_RETURN(stored_, incoming_->Commit());
  incoming_ = nullptr;  // which removes what was there before
  return record_.cancellation().Check();
}

void UploadCall::Loaded(const absl::StatusOr<LoadResult>& result) {
  if (result.status().code() == absl::StatusCode::kCancelled) {
    // The load itself ends a little later, and holds on to the content until then. An update of
    // nothing waits for it.
    UpdateRequest nothing;
    nothing.name = load_.name;
    plane_.registry.Update(std::move(nothing),
                           [call = shared_from_this(), status = result.status()](
                               const absl::StatusOr<AdapterSnapshot>&) { call->Discard(status); });
    return;
  }
  if (!result.ok()) return Discard(result.status());
  ToProto(result->adapter, v1::ADAPTER_VIEW_BASIC, *response_->mutable_adapter());
  response_->set_already_loaded(result->already_loaded);
  response_->set_replaced_revision(result->replaced_revision);
  for (const std::string& name : result->evicted) response_->add_evicted(name);
  const bool leaves_garbage =
      plane_.content->temporary() || result->already_loaded || !result->replaced_revision.empty();
  if (leaves_garbage) return Discard(absl::OkStatus());
  stored_ = StoredContent();  // the adapter names it by now
  End(absl::OkStatus());
}

void UploadCall::Discard(const absl::Status& status) {
  if (stored_.key().empty()) return End(status);
  stored_ = StoredContent();
  plane_.collector.Request([call = shared_from_this(), status] { call->End(status); });
}

void UploadCall::End(const absl::Status& status) {
  incoming_ = nullptr;  // a client that has its answer finds nothing left
  const int64_t bytes = status.ok() ? static_cast<int64_t>(response_->ByteSizeLong()) : 0;
  Finish(record_.End(status, bytes));
}

void UploadCall::OnDone() {
  record_.OnDone();
  const std::shared_ptr<UploadCall> self = std::move(self_);
  record_.Left();
}

}  // namespace adapterd
