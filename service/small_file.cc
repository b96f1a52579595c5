#include "service/small_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/base/error.h"
#include "core/formats/scoped_fd.h"

namespace adapterd {
namespace {

absl::Status Failed(const std::string& path) {
  return Error(Reason::kSourceUnavailable, fmt::format("{}: {}", path, std::strerror(errno)));
}

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes) {
  // A FIFO in its place must not hold the caller up.
  const ScopedFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return Failed(path);
  std::string content;
  char block[4096];
  for (ssize_t count; (count = read(fd.get(), block, sizeof(block))) != 0;) {
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Failed(path);
    content.append(block, static_cast<size_t>(count));
    if (content.size() > max_bytes) {
      return Error(Reason::kSourceUnavailable,
                   fmt::format("{}: has more than {} bytes", path, max_bytes));
    }
  }
  return content;
}

}  // namespace adapterd
