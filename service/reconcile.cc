#include "service/reconcile.h"

#include <fmt/format.h>

#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "core/catalog/reconcile.h"
#include "service/adapter_convert.h"
#include "service/adapter_listing.h"
#include "service/status_convert.h"

namespace adapterd {
namespace {

v1::ReconcileAction ToProto(ReconcileAction action) {
  switch (action) {
    case ReconcileAction::kLoad:
      return v1::RECONCILE_ACTION_LOAD;
    case ReconcileAction::kReplace:
      return v1::RECONCILE_ACTION_REPLACE;
    case ReconcileAction::kUnload:
      return v1::RECONCILE_ACTION_UNLOAD;
    case ReconcileAction::kUnchanged:
      return v1::RECONCILE_ACTION_UNCHANGED;
    default:
      return v1::RECONCILE_ACTION_CONFLICT;
  }
}

absl::StatusOr<std::vector<LoadRequest>> DesiredOf(const v1::ReconcileAdaptersRequest& request) {
  if (request.desired_size() > kMaxDesired) {
    return FieldError("desired", fmt::format("at most {} adapters", kMaxDesired),
                      std::to_string(request.desired_size()));
  }
  std::vector<LoadRequest> desired;
  std::set<std::string> names;
  for (int i = 0; i < request.desired_size(); ++i) {
    const std::string field = fmt::format("desired[{}]", i);
    ASSIGN_OR_RETURN(LoadRequest load, LoadRequestFromProto(request.desired(i), field));
    if (!names.insert(load.name).second) {
      return FieldError(field + ".name", "each name once", load.name);
    }
    desired.push_back(std::move(load));
  }
  return desired;
}

// Carries the steps of one call out, a few at a time. Shared by the call and by whatever runs for
// it. Callbacks of the registry may run within its methods, so each only hands over to the pool.
class ReconcileRun : public std::enable_shared_from_this<ReconcileRun> {
 public:
  ReconcileRun(ControlPlane& plane, std::shared_ptr<RpcCall> call,
               v1::ReconcileAdaptersResponse& response, std::vector<ReconcileStep> steps)
      : plane_(plane),
        registry_(plane.registry),
        call_(std::move(call)),
        response_(response),
        steps_(std::move(steps)),
        results_(steps_.size()) {
    for (size_t i = 0; i < steps_.size(); ++i) {
      if (steps_[i].unload) order_.push_back(i);
    }
    unloads_ = order_.size();
    for (size_t i = 0; i < steps_.size(); ++i) {
      if (steps_[i].load) order_.push_back(i);
    }
  }

  // Starts what may start, and answers when all is done. On the pool.
  void Advance() ABSL_LOCKS_EXCLUDED(mutex_) {
    while (const std::optional<size_t> step = Next()) Begin(*step);
    if (AllDone()) Answer();
  }

  // Starts nothing any more, gives up what runs, and does not wait for it.
  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_) {
    std::map<size_t, AdapterRegistry::TicketPtr> running;
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
      running = running_;
    }
    for (const auto& [step, ticket] : running) registry_.Cancel(ticket);
    if (call_->Claim()) call_->Answer(absl::CancelledError("the caller went away"));
  }

 private:
  // The next step to begin. Nullopt: none, or none before another one is done.
  std::optional<size_t> Next() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (cancelled_ || begun_ == order_.size()) return std::nullopt;
    const bool unloading = done_ < unloads_;
    if (unloading ? begun_ == unloads_ : begun_ - done_ == kMaxReconcileLoads) return std::nullopt;
    return order_[begun_++];
  }

  void Begin(size_t step) ABSL_LOCKS_EXCLUDED(mutex_) {
    const ReconcileStep& what = steps_[step];
    auto run = shared_from_this();
    AdapterRegistry::TicketPtr ticket;
    if (what.unload) {
      ticket =
          registry_.Unload(*what.unload, [run, step](const absl::StatusOr<UnloadResult>& result) {
            run->Finished(step, result.status(), result.ok() ? result->freed_bytes : 0);
          });
    } else {
      ticket = registry_.Load(*what.load, [run, step](const absl::StatusOr<LoadResult>& result) {
        run->Finished(step, result.status(), 0);
      });
    }
    bool cancelled;
    {
      absl::MutexLock lock(&mutex_);
      cancelled = cancelled_;
      if (!results_[step]) running_[step] = ticket;
    }
    if (cancelled) registry_.Cancel(ticket);
  }

  // Once it is cancelled the call may be over, and the plane with it: hence under the lock.
  void Finished(size_t step, const absl::Status& status, int64_t freed_bytes)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    ++done_;
    freed_bytes_ += freed_bytes;
    running_.erase(step);
    results_[step] = status;
    if (!cancelled_) plane_.control_pool.Submit([run = shared_from_this()] { run->Advance(); });
  }

  bool AllDone() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return done_ == order_.size();
  }

  void Answer() ABSL_LOCKS_EXCLUDED(mutex_) {
    call_->Run(response_, [&]() -> absl::Status {
      absl::MutexLock lock(&mutex_);
      if (!order_.empty()) plane_.Released(freed_bytes_);
      for (size_t i = 0; i < steps_.size(); ++i) {
        Fill(steps_[i], results_[i].value_or(absl::OkStatus()));
      }
      return absl::OkStatus();
    });
  }

  void Fill(const ReconcileStep& step, const absl::Status& error) {
    v1::ReconcileChange& change = *response_.add_changes();
    change.set_name(step.name);
    change.set_action(ToProto(step.action));
    change.set_reason(step.reason);
    if (error.ok()) return;
    change.set_error(ClampUtf8(fmt::format("{}: {}", ReasonName(GetErrorDetails(error).reason),
                                           std::string(error.message())),
                               kMaxChangeErrorBytes));
  }

  ControlPlane& plane_;  // while the call is open
  AdapterRegistry& registry_;
  const std::shared_ptr<RpcCall> call_;
  v1::ReconcileAdaptersResponse& response_;
  const std::vector<ReconcileStep> steps_;
  std::vector<size_t> order_;  // of what is to be done: unloads, then loads
  size_t unloads_ = 0;

  absl::Mutex mutex_;
  size_t begun_ ABSL_GUARDED_BY(mutex_) = 0;  // of order_
  size_t done_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t freed_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<size_t, AdapterRegistry::TicketPtr> running_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::optional<absl::Status>> results_ ABSL_GUARDED_BY(mutex_);  // of each step
};

// The plan, without what would carry it out when that is not asked for.
absl::StatusOr<std::vector<ReconcileStep>> Plan(const AdapterRegistry& registry,
                                                const v1::ReconcileAdaptersRequest& request) {
  ASSIGN_OR_RETURN(const std::vector<LoadRequest> desired, DesiredOf(request));
  std::vector<ReconcileStep> steps =
      PlanReconcile(desired, ListEverything(registry), request.prune());
  for (ReconcileStep& step : steps) {
    if (!request.dry_run()) break;
    step.load.reset();
    step.unload.reset();
  }
  return steps;
}

}  // namespace

void Reconcile(ControlPlane& plane, std::shared_ptr<RpcCall> call,
               const v1::ReconcileAdaptersRequest& request,
               v1::ReconcileAdaptersResponse& response) {
  std::vector<ReconcileStep> steps;
  const absl::Status planned = GuardedCall([&]() -> absl::Status {
    ASSIGN_OR_RETURN(steps, Plan(plane.registry, request));
    return absl::OkStatus();
  });
  if (!planned.ok()) {
    if (call->Claim()) call->Answer(planned);
    return;
  }
  auto run = std::make_shared<ReconcileRun>(plane, call, response, std::move(steps));
  call->WhenCancelled([run] { run->Cancel(); });
  run->Advance();
}

}  // namespace adapterd
