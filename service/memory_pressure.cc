#include "service/memory_pressure.h"

#include <pthread.h>

#include <utility>

namespace adapterd {
namespace {

// Bytes above what is still without pressure.
int64_t Excess(const std::optional<MemoryUse>& use) {
  if (!use) return 0;
  const auto calm = static_cast<int64_t>(kMemoryPressure * static_cast<double>(use->limit_bytes));
  return use->used_bytes - calm;
}

}  // namespace

MemoryPressure::MemoryPressure(std::function<std::optional<MemoryUse>()> read, Relief relief,
                               absl::Duration period)
    : read_(std::move(read)),
      relief_(std::move(relief)),
      period_(period),
      thread_([this] { Run(); }) {}

MemoryPressure::~MemoryPressure() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void MemoryPressure::Run() {
  pthread_setname_np(pthread_self(), "memory");
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      const auto stopping = +[](bool* stop) { return *stop; };
      if (mutex_.AwaitWithTimeout(absl::Condition(stopping, &stopping_), period_)) {
        return;
      }
    }
    Check();
  }
}

void MemoryPressure::Check() {
  const std::optional<MemoryUse> use = read_();
  const bool was_pressed = std::exchange(pressed_, Excess(use) > 0);
  if (!pressed_) return;
  if (!was_pressed) relief_.began(*use);
  relief_.drop_caches();
  if (const int64_t excess = Excess(read_()); excess > 0) relief_.evict(excess);
}

}  // namespace adapterd
