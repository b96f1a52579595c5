// Hears early that something changed in some folders.
#ifndef ADAPTERD_CORE_CATALOG_FOLDER_EVENTS_H_
#define ADAPTERD_CORE_CATALOG_FOLDER_EVENTS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/formats/scoped_fd.h"

namespace adapterd {

// Inotify, and a way to be woken. Only a hint: network file systems tell nothing, the kernel's
// queue overflows, and watches may run out. Wake from any thread, the rest from one.
class FolderEvents {
 public:
  struct Heard {
    bool changed = false;  // in a watched folder
    bool woken = false;
  };

  // SOURCE_UNAVAILABLE when the process may open no more files. A kernel that has no inotify left
  // is no error of Create, but of Watch.
  static absl::StatusOr<std::unique_ptr<FolderEvents>> Create();

  // From now on these folders, by path, and no others. Symlinks are followed; what is not there is
  // left out. SOURCE_UNAVAILABLE when the kernel does not have watches for all of them.
  absl::Status Watch(const std::vector<std::string>& folders);

  // Watched folders that hold a file which was written since it is watched, and not closed yet: a
  // writer that rests, or one that never closes. Writes through mappings are not heard.
  std::set<std::string> being_written() const;

  // Until something is heard or `timeout` (>= 0) is over.
  Heard Wait(absl::Duration timeout);

  // Ends the current or the next Wait.
  void Wake();

 private:
  FolderEvents(ScopedFd inotify, absl::Status inotify_status, ScopedFd wake)
      : inotify_(std::move(inotify)),
        inotify_status_(std::move(inotify_status)),
        wake_(std::move(wake)) {}

  bool DrainInotify();
  void Note(int watch, uint32_t mask, const std::string& name);

  const ScopedFd inotify_;  // invalid when there is none
  const absl::Status inotify_status_;
  const ScopedFd wake_;
  std::map<std::string, int> watches_;         // by path; symlinks may share one
  std::map<int, std::set<std::string>> open_;  // files, by watch
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_FOLDER_EVENTS_H_
