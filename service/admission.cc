#include "service/admission.h"

#include <fmt/format.h>

#include <utility>

#include "core/base/error.h"
#include "core/base/status_macros.h"

namespace adapterd {

Admission::Ticket::Ticket(Ticket&& other) noexcept
    : admission_(std::exchange(other.admission_, nullptr)), bytes_(other.bytes_) {}

Admission::Ticket& Admission::Ticket::operator=(Ticket&& other) noexcept {
  if (this != &other) {
    Release();
    admission_ = std::exchange(other.admission_, nullptr);
    bytes_ = other.bytes_;
  }
  return *this;
}

absl::Status Admission::Ticket::Grow(int64_t bytes) {
  RETURN_IF_ERROR(admission_->Take(bytes, 0));
  bytes_ += bytes;
  return absl::OkStatus();
}

void Admission::Ticket::Release() {
  if (admission_ != nullptr) admission_->GiveBack(bytes_);
  admission_ = nullptr;
}

absl::StatusOr<Admission::Ticket> Admission::Admit(int64_t bytes) {
  RETURN_IF_ERROR(Take(bytes, 1));
  return Ticket(this, bytes);
}

absl::Status Admission::Take(int64_t bytes, int requests) {
  absl::MutexLock lock(&mutex_);
  const bool alone = requests_ == (requests == 0 ? 1 : 0);
  if (requests_ + requests > kMaxAdmittedRequests || (bytes_ + bytes > max_bytes_ && !alone)) {
    return Error(Reason::kOverloaded,
                 fmt::format("{} requests with {} of {} bytes are being worked on; try again",
                             requests_, bytes_, max_bytes_));
  }
  bytes_ += bytes;
  requests_ += requests;
  gauge_.Set(static_cast<double>(bytes_));
  return absl::OkStatus();
}

void Admission::GiveBack(int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  bytes_ -= bytes;
  --requests_;
  gauge_.Set(static_cast<double>(bytes_));
}

}  // namespace adapterd
