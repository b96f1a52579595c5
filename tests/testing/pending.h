// The answer of a callback, for a test to wait for.
#ifndef ADAPTERD_TESTS_TESTING_PENDING_H_
#define ADAPTERD_TESTS_TESTING_PENDING_H_

#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "tests/testing/fake_sources.h"

namespace adapterd {

// Copies share one answer. Any thread.
template <typename T>
class Pending {
 public:
  // Hand it out once. A second call of it throws, on the thread that makes it.
  absl::AnyInvocable<void(absl::StatusOr<T>)> Callback() {
    return [state = state_](absl::StatusOr<T> answer) {
      absl::MutexLock lock(&state->mutex);
      if (state->answered) throw std::logic_error("a callback ran twice");
      state->answer.emplace(std::move(answer));
      state->answered = true;
    };
  }

  bool answered() const {
    absl::MutexLock lock(&state_->mutex);
    return state_->answered;
  }

  // The answer, which it gives once.
  absl::StatusOr<T> Wait() {
    absl::MutexLock lock(&state_->mutex);
    AwaitOrThrow(state_->mutex, absl::Condition(&state_->answered));
    return *std::exchange(state_->answer, std::nullopt);
  }

 private:
  struct State {
    absl::Mutex mutex;
    bool answered ABSL_GUARDED_BY(mutex) = false;
    std::optional<absl::StatusOr<T>> answer ABSL_GUARDED_BY(mutex);
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_PENDING_H_
