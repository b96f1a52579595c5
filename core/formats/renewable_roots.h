// Roots that may be opened anew while sources are read below them.
#ifndef ADAPTERD_CORE_FORMATS_RENEWABLE_ROOTS_H_
#define ADAPTERD_CORE_FORMATS_RENEWABLE_ROOTS_H_

#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "core/formats/source_roots.h"

namespace adapterd {

// A root stays the folder that was opened, whatever its path leads to by now. Where the path is to
// count (a symlink that is swapped, a volume that is mounted again), somebody opens it again and
// calls Set. What was opened below the old roots stays open. Never null; any thread.
class RenewableRoots {
 public:
  explicit RenewableRoots(std::shared_ptr<const SourceRoots> roots) : roots_(std::move(roots)) {}

  void Set(std::shared_ptr<const SourceRoots> roots) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    roots_ = std::move(roots);
  }

  std::shared_ptr<const SourceRoots> Get() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return roots_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::shared_ptr<const SourceRoots> roots_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_FORMATS_RENEWABLE_ROOTS_H_
