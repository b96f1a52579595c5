#include "service/watch_call.h"

#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "service/adapter_convert.h"

namespace adapterd {
namespace {

v1::AdapterEventType ToProto(AdapterEventType type) {
  switch (type) {
    case AdapterEventType::kLoaded:
      return v1::ADAPTER_EVENT_TYPE_LOADED;
    case AdapterEventType::kReplaced:
      return v1::ADAPTER_EVENT_TYPE_REPLACED;
    case AdapterEventType::kEvicted:
      return v1::ADAPTER_EVENT_TYPE_EVICTED;
    case AdapterEventType::kRestored:
      return v1::ADAPTER_EVENT_TYPE_RESTORED;
    case AdapterEventType::kUpdated:
      return v1::ADAPTER_EVENT_TYPE_UPDATED;
    case AdapterEventType::kFailed:
      return v1::ADAPTER_EVENT_TYPE_FAILED;
    default:
      return v1::ADAPTER_EVENT_TYPE_UNLOADED;
  }
}

void ToProto(const AdapterEvent& event, v1::AdapterEvent& out) {
  out.set_sequence(event.sequence);
  out.set_type(ToProto(event.type));
  ToProto(event.adapter, v1::ADAPTER_VIEW_BASIC, *out.mutable_adapter());
  TimeToProto(event.time, *out.mutable_time());
}

}  // namespace

WatchCall::WatchCall(const WatchPlane& plane, RpcMetrics& metrics,
                     grpc::CallbackServerContext* context, const v1::WatchAdaptersRequest& request)
    : plane_(plane),
      context_(context),
      record_(plane.environment, metrics, Plane::kControl, context,
              static_cast<int64_t>(request.ByteSizeLong())) {}

std::shared_ptr<WatchCall> WatchCall::Start(const WatchPlane& plane, RpcMetrics& metrics,
                                            grpc::CallbackServerContext* context,
                                            const v1::WatchAdaptersRequest& request) {
  std::shared_ptr<WatchCall> call(new WatchCall(plane, metrics, context, request));
  call->self_ = call;
  const absl::Status status = call->Begin(request);
  if (status.ok()) {
    call->StartSendInitialMetadata();
    call->Wake();
  } else {
    call->End(status);
  }
  return call;
}

absl::Status WatchCall::Begin(const v1::WatchAdaptersRequest& request) {
  RETURN_IF_ERROR(record_.Admit());
  if (request.has_from_sequence() && request.from_sequence() < 0) {
    return FieldError("from_sequence", "0 or more", std::to_string(request.from_sequence()));
  }
  const int64_t from =
      request.has_from_sequence() ? request.from_sequence() : plane_.events.last_sequence();
  RETURN_IF_ERROR(plane_.events.After(from, 0).status());
  RETURN_IF_ERROR(plane_.watchers.Add(shared_from_this()));
  {
    absl::MutexLock lock(&mutex_);
    position_ = from;
  }
  // The log holds a share until OnDone, so that its listener never finds the call gone.
  subscription_ = plane_.events.Subscribe([call = shared_from_this()] { call->Wake(); });
  return absl::OkStatus();
}

void WatchCall::Wake() {
  if (woken_.exchange(true)) return;
  plane_.pool.Submit([call = shared_from_this()] { call->Step(); });
}

void WatchCall::End(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (end_.ok()) end_ = status;
  }
  Wake();
}

void WatchCall::Cut() {
  {
    absl::MutexLock lock(&mutex_);
    if (!writing_) return;
    cutting_ = true;  // keeps the call from being finished, and so its context
  }
  context_->TryCancel();
  {
    absl::MutexLock lock(&mutex_);
    cutting_ = false;
  }
  Wake();
}

bool WatchCall::NextMessage() {
  absl::StatusOr<std::vector<EventPtr>> events = plane_.events.After(position_, 1);
  if (!events.ok()) end_ = events.status();
  if (!events.ok() || events->empty()) return false;
  end_ = record_.CheckAllowed();
  if (!end_.ok()) return false;
  const AdapterEvent& event = *events->front();
  position_ = event.sequence;
  message_.Clear();
  ToProto(event, *message_.mutable_event());
  written_bytes_ += static_cast<int64_t>(message_.ByteSizeLong());
  return true;
}

void WatchCall::Step() {
  woken_ = false;  // before looking: what happens from now on makes another step
  absl::Status end;
  int64_t bytes = 0;
  {
    absl::MutexLock lock(&mutex_);
    if (finished_ || writing_ || cutting_) return;
    if (end_.ok() && !NextMessage() && end_.ok()) return;
    writing_ = end_.ok();
    finished_ = !end_.ok();
    end = end_;
    bytes = written_bytes_;
  }
  // Outside the lock: gRPC may answer on this thread before it returns.
  if (end.ok()) {
    StartWrite(&message_);
  } else {
    Finish(record_.End(end, bytes));
  }
}

void WatchCall::OnWriteDone(bool ok) {
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok && end_.ok()) end_ = absl::CancelledError("the caller went away");
  }
  Wake();
}

void WatchCall::OnCancel() {
  const std::shared_ptr<WatchCall> self = shared_from_this();  // not freed before the last line
  record_.OnCancel();
  End(absl::CancelledError("the caller went away"));
}

void WatchCall::OnDone() {
  const std::shared_ptr<WatchCall> self = std::move(self_);
  plane_.events.Unsubscribe(subscription_);
  plane_.watchers.Remove(self);
  record_.OnDone();
  record_.Left();
}

}  // namespace adapterd
