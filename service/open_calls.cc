#include "service/open_calls.h"

namespace adapterd {

bool OpenCalls::Enter(Call& call) {
  absl::MutexLock lock(&mutex_);
  if (closed_) return false;
  call.previous = last_;
  call.next = nullptr;
  (last_ == nullptr ? first_ : last_->next) = &call;
  last_ = &call;
  return true;
}

void OpenCalls::Leave(Call& call) {
  absl::MutexLock lock(&mutex_);
  (call.previous == nullptr ? first_ : call.previous->next) = call.next;
  (call.next == nullptr ? last_ : call.next->previous) = call.previous;
}

void OpenCalls::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
}

bool OpenCalls::AwaitNone(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(
                                      +[](Call** first) { return *first == nullptr; }, &first_),
                                  deadline);
}

std::vector<OpenCalls::Call> OpenCalls::List() const {
  absl::MutexLock lock(&mutex_);
  std::vector<Call> calls;
  for (const Call* call = first_; call != nullptr; call = call->next) calls.push_back(*call);
  return calls;
}

}  // namespace adapterd
