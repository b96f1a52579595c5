#include "service/upload_call.h"

#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"
#include "service/stored_load.h"

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

absl::Status UploadCall::Admit() {
  RETURN_IF_ERROR(record_.Admit());
  return CheckStore(plane_);
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
  RETURN_IF_ERROR(record_.AdmitMessage(bytes));
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
  record_.AuditRequest(start);
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
  StoredContent stored;
  const absl::Status status = GuardedCall([&] { return Commit(stored); });
  if (!status.ok()) return End(status);
  auto ticket = LoadStored(plane_, std::move(stored), std::move(load_),
                           [call = shared_from_this()](const absl::StatusOr<LoadResult>& result) {
                             call->Loaded(result);
                           });
  record_.WhenCancelled([this, ticket] { plane_.registry.Cancel(ticket); });
}

absl::Status UploadCall::Commit(StoredContent& stored) {
  // A broken stream ends like one that the client closed. Which of the two it was, is known soon
  // after: before the files are on disk, or while they are loaded, which is given up then. Should
  // even that be over, then what arrived was a whole adapter.
  RETURN_IF_ERROR(record_.cancellation().Check());
  if (incoming_ == nullptr) return Invalid("start", "expected as the first message, found the end");
  ASSIGN_OR_RETURN(stored, incoming_->Commit());
  incoming_ = nullptr;  // which removes what was there before
  return absl::OkStatus();
}

void UploadCall::Loaded(const absl::StatusOr<LoadResult>& result) {
  if (result.ok()) {
    ToProto(result->adapter, v1::ADAPTER_VIEW_BASIC, *response_->mutable_adapter());
    response_->set_already_loaded(result->already_loaded);
    response_->set_replaced_revision(result->replaced_revision);
    for (const std::string& name : result->evicted) response_->add_evicted(name);
  }
  End(result.status());
}

void UploadCall::End(const absl::Status& status) {
  incoming_ = nullptr;  // a client that has its answer finds nothing left
  const int64_t bytes = status.ok() ? static_cast<int64_t>(response_->ByteSizeLong()) : 0;
  if (status.ok()) record_.AuditResponse(*response_);
  Finish(record_.End(status, bytes));
}

void UploadCall::OnDone() {
  record_.OnDone();
  const std::shared_ptr<UploadCall> self = std::move(self_);
  record_.Left();
}

}  // namespace adapterd
