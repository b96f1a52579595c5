#include "service/content_collector.h"

#include <string>
#include <utility>

namespace adapterd {

ContentCollector::~ContentCollector() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](bool* running) { return !*running; }, &running_));
}

void ContentCollector::Request(absl::AnyInvocable<void()> then) {
  if (store_ == nullptr) return then();
  absl::MutexLock lock(&mutex_);
  waiting_.push_back(std::move(then));
  if (running_) return;
  running_ = true;
  io_pool_.Submit([this] { Run(); });
}

void ContentCollector::Run() {
  for (;;) {
    std::vector<absl::AnyInvocable<void()>> served;
    {
      absl::MutexLock lock(&mutex_);
      served.swap(waiting_);
      if (served.empty()) {
        running_ = false;
        return;
      }
    }
    Collect();
    for (auto& then : served) then();
  }
}

void ContentCollector::Collect() {
  const auto collected = store_->Collect(
      [this] { return store_->temporary() ? std::set<std::string>() : registry_.StoredKeys(); });
  if (!collected.ok()) {
    logger_.Log(LogLevel::kWarning, "uploads_not_removed",
                {{"message", std::string(collected.status().message())}});
  } else if (collected->contents > 0) {
    logger_.Log(LogLevel::kInfo, "uploads_removed",
                {{"contents", collected->contents}, {"bytes", collected->bytes}});
  }
}

}  // namespace adapterd
