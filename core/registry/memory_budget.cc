#include "core/registry/memory_budget.h"

#include <fmt/format.h>

#include "core/base/error.h"

namespace adapterd {

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Release();
    budget_ = std::move(other.budget_);
    bytes_ = std::exchange(other.bytes_, 0);
    kind_ = other.kind_;
  }
  return *this;
}

void Reservation::Release() {
  if (budget_ != nullptr) budget_->GiveBack(std::exchange(bytes_, 0), kind_);
  budget_.reset();
}

std::shared_ptr<MemoryBudget> MemoryBudget::Create(int64_t limit_bytes) {
  return std::shared_ptr<MemoryBudget>(new MemoryBudget(limit_bytes));
}

absl::Status MemoryBudget::Exceeded(int64_t bytes) const {
  int64_t used;
  int64_t limit;
  {
    absl::MutexLock lock(&mutex_);
    used = used_;
    limit = limit_;
  }
  return Error(Reason::kMemoryBudgetExceeded,
               fmt::format("{} bytes are needed, but {} of the budget of {} bytes are in use",
                           bytes, used, limit))
      .With("needed_bytes", bytes)
      .With("used_bytes", used)
      .With("budget_bytes", limit);
}

absl::StatusOr<Reservation> MemoryBudget::TryReserve(int64_t bytes, MemoryKind kind) {
  {
    absl::MutexLock lock(&mutex_);
    if (bytes <= limit_ - used_) {
      used_ += bytes;
      used_by_kind_[static_cast<size_t>(kind)] += bytes;
      return Reservation(shared_from_this(), bytes, kind);
    }
  }
  return Exceeded(bytes);
}

absl::StatusOr<Reservation> MemoryBudget::Reserve(int64_t bytes, MemoryKind kind) {
  while (true) {
    absl::StatusOr<Reservation> reservation = TryReserve(bytes, kind);
    if (reservation.ok()) return reservation;
    std::shared_ptr<const Reclaimer> reclaim;
    int64_t missing;
    {
      absl::MutexLock lock(&mutex_);
      if (bytes > limit_) return reservation;  // whatever goes
      reclaim = reclaim_;
      missing = bytes - (limit_ - used_);
    }
    if (reclaim == nullptr || !(*reclaim)(missing)) return reservation;
  }
}

void MemoryBudget::Attach(Reclaimer reclaim, std::function<void()> freed) {
  absl::MutexLock lock(&mutex_);
  reclaim_ = reclaim ? std::make_shared<const Reclaimer>(std::move(reclaim)) : nullptr;
  freed_ = freed ? std::make_shared<const std::function<void()>>(std::move(freed)) : nullptr;
}

void MemoryBudget::SetLimit(int64_t limit_bytes) {
  absl::MutexLock lock(&mutex_);
  limit_ = limit_bytes;
}

int64_t MemoryBudget::limit() const {
  absl::MutexLock lock(&mutex_);
  return limit_;
}

int64_t MemoryBudget::used() const {
  absl::MutexLock lock(&mutex_);
  return used_;
}

int64_t MemoryBudget::used(MemoryKind kind) const {
  absl::MutexLock lock(&mutex_);
  return used_by_kind_[static_cast<size_t>(kind)];
}

void MemoryBudget::GiveBack(int64_t bytes, MemoryKind kind) {
  std::shared_ptr<const std::function<void()>> freed;
  {
    absl::MutexLock lock(&mutex_);
    used_ -= bytes;
    used_by_kind_[static_cast<size_t>(kind)] -= bytes;
    freed = freed_;
  }
  if (freed != nullptr) (*freed)();
}

}  // namespace adapterd
