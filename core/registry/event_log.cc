#include "core/registry/event_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <utility>

#include "core/base/error.h"

namespace adapterd {
namespace {

// Room for 2^40 events after any start, and a chance of one in 2^22 that two starts are the same.
int64_t RandomStart() {
  std::random_device random;
  return static_cast<int64_t>(random() & 0x3fffff) << 40;
}

}  // namespace

EventLog::EventLog() : last_(RandomStart()) {}

void EventLog::Append(AdapterEventType type, AdapterSnapshot adapter) {
  adapter.manifest = nullptr;
  absl::MutexLock lock(&mutex_);
  if (events_.size() == kCapacity) events_.pop_front();
  events_.push_back(std::make_shared<const AdapterEvent>(
      AdapterEvent{++last_, type, std::move(adapter), absl::Now()}));
  for (const auto& [id, listener] : listeners_) listener();
}

int64_t EventLog::last_sequence() const {
  absl::MutexLock lock(&mutex_);
  return last_;
}

absl::StatusOr<std::vector<EventPtr>> EventLog::After(int64_t sequence, size_t max) const {
  absl::MutexLock lock(&mutex_);
  const int64_t before_first = last_ - static_cast<int64_t>(events_.size());
  if (sequence < before_first || sequence > last_) {
    return Error(Reason::kSequenceExpired,
                 fmt::format("the events after {} are not kept: list again, and watch from the "
                             "sequence of that reply",
                             sequence))
        .With("expected", fmt::format("{} to {}", before_first, last_))
        .With("actual", sequence);
  }
  const auto first = events_.begin() + (sequence - before_first);
  const size_t count = std::min<size_t>(max, events_.end() - first);
  return std::vector<EventPtr>(first, first + static_cast<int64_t>(count));
}

std::vector<EventPtr> EventLog::Last(size_t max) const {
  absl::MutexLock lock(&mutex_);
  const size_t count = std::min(max, events_.size());
  return std::vector<EventPtr>(events_.end() - static_cast<int64_t>(count), events_.end());
}

int64_t EventLog::Subscribe(std::function<void()> listener) {
  absl::MutexLock lock(&mutex_);
  listeners_[++next_listener_] = std::move(listener);
  return next_listener_;
}

void EventLog::Unsubscribe(int64_t id) {
  absl::MutexLock lock(&mutex_);
  listeners_.erase(id);
}

}  // namespace adapterd
