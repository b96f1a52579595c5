#include "service/data_request.h"

#include <utility>

#include "core/base/status_macros.h"

namespace adapterd {

void DataRequest::Start(int64_t bytes) {
  if (const absl::Status wanted = CheckWanted(); !wanted.ok()) return Answer(wanted);
  absl::StatusOr<Admission::Ticket> admitted = plane_.admission.Admit(bytes);
  if (!admitted.ok()) return Answer(admitted.status());
  admitted_ = *std::move(admitted);
  if (bytes <= kShortRequestBytes) return Begin(Place::kGrpcThread);
  Enqueue([this] { Begin(Place::kWorker); });
}

void DataRequest::Cancel() {
  cancellation_.Cancel();
  AdapterRegistry::TicketPtr ticket;
  {
    absl::MutexLock lock(&mutex_);
    ticket = std::move(ticket_);
  }
  if (ticket != nullptr) plane_.registry.Cancel(ticket);
}

void DataRequest::Begin(Place place) {
  Needs needs;
  const absl::Status parsed = GuardedCall([&]() -> absl::Status {
    ASSIGN_OR_RETURN(needs, Parse());
    return absl::OkStatus();
  });
  if (!parsed.ok()) return Answer(parsed);
  if (auto handles = plane_.registry.AcquireNow(needs.adapters, needs.skip_disabled)) {
    return Proceed(*std::move(handles), place);
  }
  Wait(std::move(needs));
}

void DataRequest::Wait(Needs needs) {
  AdapterRegistry::TicketPtr ticket = plane_.registry.Acquire(
      std::move(needs.adapters), needs.skip_disabled,
      [self = shared_from_this()](Handles handles) mutable {
        self->Enqueue([self = self.get(), handles = std::move(handles)]() mutable {
          self->Proceed(std::move(handles), Place::kWorker);
        });
      });
  {
    absl::MutexLock lock(&mutex_);
    ticket_ = ticket;
  }
  if (cancellation_.IsCancelled()) plane_.registry.Cancel(ticket);
}

void DataRequest::Enqueue(absl::AnyInvocable<void()> step) {
  plane_.workers.Submit(
      [self = shared_from_this(), step = std::move(step), submitted = absl::Now()]() mutable {
        self->queued_ += absl::Now() - submitted;
        if (const absl::Status wanted = self->CheckWanted(); !wanted.ok()) {
          step = nullptr;  // lets go of what it holds before the answer
          return self->Answer(wanted);
        }
        step();
      });
}

void DataRequest::Proceed(Handles handles, Place place) {
  if (!handles.ok()) return Answer(handles.status());
  handles_ = *std::move(handles);
  int64_t flops = 0;
  const absl::Status prepared = GuardedCall([&]() -> absl::Status {
    ASSIGN_OR_RETURN(flops, Prepare(handles_));
    return absl::OkStatus();
  });
  if (!prepared.ok()) return Answer(prepared);
  if (place == Place::kWorker || flops <= plane_.short_flops) return Finish();
  Enqueue([this] { Finish(); });
}

void DataRequest::Finish() {
  Answer(GuardedCall([this] { return Compute(); }));
}

absl::Status DataRequest::CheckWanted() const {
  if (absl::Now() >= deadline_) return absl::DeadlineExceededError("the deadline passed");
  return cancellation_.Check();
}

void DataRequest::Release() {
  handles_.clear();
  admitted_ = {};
}

}  // namespace adapterd
