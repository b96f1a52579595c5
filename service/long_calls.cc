#include "service/long_calls.h"

#include <fmt/format.h>

#include <utility>

#include "core/base/error.h"

namespace adapterd {
namespace {

absl::Status Draining() { return Error(Reason::kDraining, "the server is shutting down"); }

}  // namespace

absl::Status LongCalls::Add(std::shared_ptr<LongCall> call) {
  absl::MutexLock lock(&mutex_);
  if (ended_) return Draining();
  if (calls_.size() >= max_) {
    return Error(Reason::kOverloaded,
                 fmt::format("{} {} are open, the most that may be", calls_.size(), what_));
  }
  calls_.insert(std::move(call));
  return absl::OkStatus();
}

void LongCalls::Remove(const std::shared_ptr<LongCall>& call) {
  absl::MutexLock lock(&mutex_);
  calls_.erase(call);
}

std::set<std::shared_ptr<LongCall>> LongCalls::Copy() const {
  absl::MutexLock lock(&mutex_);
  return calls_;
}

void LongCalls::End() {
  {
    absl::MutexLock lock(&mutex_);
    ended_ = true;
  }
  for (const std::shared_ptr<LongCall>& call : Copy()) call->End(Draining());
}

void LongCalls::Cut() {
  for (const std::shared_ptr<LongCall>& call : Copy()) call->Cut();
}

}  // namespace adapterd
