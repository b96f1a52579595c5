// A file descriptor that closes itself.
#ifndef ADAPTERD_CORE_FORMATS_SCOPED_FD_H_
#define ADAPTERD_CORE_FORMATS_SCOPED_FD_H_

#include <unistd.h>

#include <utility>

namespace adapterd {

// Owns one descriptor or none (-1). Not thread-safe.
class ScopedFd {
 public:
  ScopedFd() = default;
  explicit ScopedFd(int fd) : fd_(fd) {}
  ~ScopedFd() {
    if (fd_ >= 0) close(fd_);
  }
  ScopedFd(ScopedFd&& other) noexcept : fd_(other.Release()) {}
  ScopedFd& operator=(ScopedFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_SCOPED_FD_H_
