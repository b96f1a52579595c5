#include "service/data_request.h"

#include <utility>

#include "core/base/status_macros.h"

namespace adapterd {
namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

// Not by absl::Now(), which may take seconds to notice that the time of day has jumped.
DataRequest::DataRequest(DataPlane& plane, absl::Time deadline)
    : plane_(plane),
      deadline_(Clock::now() + (absl::ToChronoTime(deadline) - std::chrono::system_clock::now())) {}

void DataRequest::Start(int64_t bytes) {
  if (const absl::Status wanted = CheckWanted(); !wanted.ok()) return Answer(wanted);
  absl::StatusOr<Admission::Ticket> admitted = plane_.admission.Admit(bytes);
  if (!admitted.ok()) return Answer(admitted.status());
  admitted_ = *std::move(admitted);
  if (bytes <= kShortRequestBytes) return Begin(Place::kGrpcThread);
  EnqueueIfThereIsRoom([this] { Begin(Place::kWorker); });
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
  const absl::Status charged = plane_.registry.ChargeTenants(needs.adapters);
  if (!charged.ok()) return Answer(charged);
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

void DataRequest::EnqueueIfThereIsRoom(absl::AnyInvocable<void()> step) {
  if (const absl::Status room = plane_.queue_limit.Check(); !room.ok()) return Answer(room);
  Enqueue(std::move(step));
}

void DataRequest::Enqueue(absl::AnyInvocable<void()> step) {
  plane_.workers.Submit(
      [self = shared_from_this(), step = std::move(step), submitted = Clock::now()]() mutable {
        const Clock::time_point begin = Clock::now();
        self->queued_ += absl::FromChrono(begin - submitted);
        if (const absl::Status wanted = self->CheckWanted(); wanted.ok()) {
          step();
        } else {
          step = nullptr;  // lets go of what it holds before the answer
          self->Answer(wanted);
        }
        self->plane_.queue_limit.Ran(absl::FromChrono(Clock::now() - begin));
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
  EnqueueIfThereIsRoom([this] { Finish(); });
}

void DataRequest::Finish() {
  Answer(GuardedCall([this] { return Compute(); }));
}

absl::Status DataRequest::CheckWanted() const {
  if (Clock::now() >= deadline_) return absl::DeadlineExceededError("the deadline passed");
  return cancellation_.Check();
}

void DataRequest::Release() {
  handles_.clear();
  admitted_ = {};
}

}  // namespace adapterd
