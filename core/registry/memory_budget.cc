#include "core/registry/memory_budget.h"

#include <fmt/format.h>

#include "core/base/error.h"

namespace adapterd {

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Release();
    budget_ = std::move(other.budget_);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

void Reservation::Release() {
  if (budget_ != nullptr) budget_->GiveBack(std::exchange(bytes_, 0));
  budget_.reset();
}

std::shared_ptr<MemoryBudget> MemoryBudget::Create(int64_t limit_bytes) {
  return std::shared_ptr<MemoryBudget>(new MemoryBudget(limit_bytes));
}

absl::StatusOr<Reservation> MemoryBudget::Reserve(int64_t bytes) {
  int64_t used;
  {
    absl::MutexLock lock(&mutex_);
    if (bytes <= limit_ - used_) {
      used_ += bytes;
      return Reservation(shared_from_this(), bytes);
    }
    used = used_;
  }
  return Error(Reason::kMemoryBudgetExceeded,
               fmt::format("{} bytes are needed, but {} of the budget of {} bytes are in use",
                           bytes, used, limit_))
      .With("needed_bytes", bytes)
      .With("used_bytes", used)
      .With("budget_bytes", limit_);
}

bool MemoryBudget::Fits(int64_t bytes) const {
  absl::MutexLock lock(&mutex_);
  return bytes <= limit_ - used_;
}

int64_t MemoryBudget::used() const {
  absl::MutexLock lock(&mutex_);
  return used_;
}

void MemoryBudget::GiveBack(int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  used_ -= bytes;
}

}  // namespace adapterd
