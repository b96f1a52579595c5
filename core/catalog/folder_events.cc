#include "core/catalog/folder_events.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "core/base/error.h"

namespace adapterd {
namespace {

constexpr uint32_t kMask = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_MODIFY |
                           IN_CLOSE_WRITE | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR;

absl::Status SystemError(std::string_view what, int error) {
  return Error(Reason::kSourceUnavailable, fmt::format("{}: {}", what, std::strerror(error)));
}

int PollTimeout(absl::Duration timeout) {
  // Rounded up, so that who waits for a time does not wake just before it.
  const int64_t ms = absl::ToInt64Milliseconds(absl::Ceil(timeout, absl::Milliseconds(1)));
  return static_cast<int>(std::clamp<int64_t>(ms, 0, std::numeric_limits<int>::max()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<FolderEvents>> FolderEvents::Create() {
  ScopedFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) return SystemError("eventfd", errno);
  ScopedFd inotify(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  absl::Status status = inotify.valid() ? absl::OkStatus() : SystemError("inotify", errno);
  return std::unique_ptr<FolderEvents>(
      new FolderEvents(std::move(inotify), std::move(status), std::move(wake)));
}

absl::Status FolderEvents::Watch(const std::vector<std::string>& folders) {
  if (!inotify_status_.ok()) return inotify_status_;
  std::map<std::string, int> watches;
  std::set<int> used;
  absl::Status status;
  for (const std::string& folder : folders) {
    const int watch = inotify_add_watch(inotify_.get(), folder.c_str(), kMask);
    if (watch >= 0) {
      watches.emplace(folder, watch);
      used.insert(watch);
    } else if (errno == ENOSPC || errno == ENOMEM) {
      status = SystemError("inotify", errno);  // those that it has already go on
    }
  }
  for (const auto& [folder, watch] : watches_) {
    if (!used.contains(watch)) inotify_rm_watch(inotify_.get(), watch);
  }
  std::erase_if(open_, [&](const auto& files) { return !used.contains(files.first); });
  watches_ = std::move(watches);
  return status;
}

std::set<std::string> FolderEvents::being_written() const {
  std::set<std::string> folders;
  for (const auto& [folder, watch] : watches_) {
    if (open_.contains(watch)) folders.insert(folder);
  }
  return folders;
}

FolderEvents::Heard FolderEvents::Wait(absl::Duration timeout) {
  std::array<pollfd, 2> fds = {pollfd{wake_.get(), POLLIN, 0}, pollfd{inotify_.get(), POLLIN, 0}};
  Heard heard;
  if (poll(fds.data(), fds.size(), PollTimeout(timeout)) <= 0) return heard;
  uint64_t count = 0;
  heard.woken = read(wake_.get(), &count, sizeof(count)) > 0;
  heard.changed = DrainInotify();
  return heard;
}

bool FolderEvents::DrainInotify() {
  bool changed = false;
  alignas(inotify_event) std::array<char, size_t{16} * 1024> buffer;
  for (;;) {
    const ssize_t size = read(inotify_.get(), buffer.data(), buffer.size());
    if (size <= 0) return changed;
    for (ssize_t at = 0; at < size;) {
      inotify_event event;
      std::memcpy(&event, buffer.data() + at, sizeof(event));
      changed |= (event.mask & IN_IGNORED) == 0;  // the word that a watch is gone
      const char* name = buffer.data() + at + sizeof(event);
      Note(event.wd, event.mask, event.len > 0 ? name : "");  // padded with NUL bytes
      at += static_cast<ssize_t>(sizeof(event) + event.len);
    }
  }
}

void FolderEvents::Note(int watch, uint32_t mask, const std::string& name) {
  if ((mask & IN_Q_OVERFLOW) != 0) open_.clear();  // who closed what is not known any more
  if ((mask & IN_MODIFY) != 0) open_[watch].insert(name);
  if ((mask & (IN_CLOSE_WRITE | IN_DELETE | IN_MOVED_FROM)) == 0) return;
  const auto found = open_.find(watch);
  if (found == open_.end()) return;
  found->second.erase(name);
  if (found->second.empty()) open_.erase(found);
}

void FolderEvents::Wake() {
  const uint64_t one = 1;
  // Only fails when nobody has read 2^64 wakes.
  [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof(one));
}

}  // namespace adapterd
