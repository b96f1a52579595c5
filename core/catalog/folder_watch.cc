#include "core/catalog/folder_watch.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/time/clock.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// Changes come in bursts: the rest of one usually arrives within this time.
constexpr absl::Duration kDebounce = absl::Milliseconds(100);

// Between two scans lies at least this many times what the first one took.
constexpr int kRest = 4;

absl::Duration SteadyNow() {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace

absl::StatusOr<std::unique_ptr<FolderWatch>> FolderWatch::Start(
    FolderOptions options, FolderActions actions, std::shared_ptr<RenewableRoots> roots) {
  ASSIGN_OR_RETURN(std::unique_ptr<FolderEvents> events, FolderEvents::Create());
  return std::unique_ptr<FolderWatch>(
      new FolderWatch(std::move(options), std::move(actions), std::move(roots), std::move(events)));
}

FolderWatch::FolderWatch(FolderOptions options, FolderActions actions,
                         std::shared_ptr<RenewableRoots> roots,
                         std::unique_ptr<FolderEvents> events)
    : options_(std::move(options)),
      events_(std::move(events)),
      sync_(options_, std::move(actions), std::move(roots), [this] { events_->Wake(); }),
      thread_([this] {
        pthread_setname_np(pthread_self(), "folder");
        Run();
      }) {}

FolderWatch::~FolderWatch() {
  {
    const absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  events_->Wake();
  thread_.join();
}

void FolderWatch::AwaitFirstLoads() {
  const absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&settled_));
}

void FolderWatch::Run() {
  absl::Duration next = SteadyNow();
  absl::Duration rested = next;
  for (;;) {
    const absl::Duration now = SteadyNow();
    if (now >= next) {
      sync_.Scan(now, events_->being_written());
      Hear();
      const absl::Duration end = SteadyNow();
      rested = end + kRest * (end - now);
      next = std::max(now + sync_.pause(), rested);
    } else {
      sync_.Advance(now);
    }
    if (!Note()) return;
    const FolderEvents::Heard heard =
        events_->Wait(std::max(next - SteadyNow(), absl::ZeroDuration()));
    if (heard.changed) next = std::min(next, std::max(SteadyNow() + kDebounce, rested));
  }
}

void FolderWatch::Hear() {
  const absl::Status status = events_->Watch(sync_.watchable());
  if (!status.ok() && !is_unheard_ && options_.report) {
    options_.report({FolderEvent::Kind::kUnheard, "", status});
  }
  is_unheard_ = !status.ok();
}

bool FolderWatch::Note() {
  const absl::MutexLock lock(&mutex_);
  settled_ |= sync_.settled();
  return !stopping_;
}

}  // namespace adapterd
