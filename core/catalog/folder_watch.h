// Directory mode: what is in a folder is what is loaded.
#ifndef ADAPTERD_CORE_CATALOG_FOLDER_WATCH_H_
#define ADAPTERD_CORE_CATALOG_FOLDER_WATCH_H_

#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/catalog/folder_events.h"
#include "core/catalog/folder_sync.h"

namespace adapterd {

// Runs a FolderSync on a thread of its own ("folder"): every period, soon after something changed,
// and again and again while something changes. A scan of 500 adapters takes some milliseconds; it
// never takes more than a fifth of the thread's time.
//
// Any thread. The destructor stops the thread, cancels its loads and waits for them; what is loaded
// stays.
class FolderWatch {
 public:
  // The first scan runs at once. SOURCE_UNAVAILABLE when the process may open no more files.
  static absl::StatusOr<std::unique_ptr<FolderWatch>> Start(FolderOptions options,
                                                            FolderActions actions,
                                                            std::shared_ptr<RenewableRoots> roots);
  ~FolderWatch();
  FolderWatch(const FolderWatch&) = delete;
  FolderWatch& operator=(const FolderWatch&) = delete;

  // Until what was there at the start is loaded or has failed.
  void AwaitFirstLoads() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  FolderWatch(FolderOptions options, FolderActions actions, std::shared_ptr<RenewableRoots> roots,
              std::unique_ptr<FolderEvents> events);

  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  void Hear();
  // Tells who waits for the first loads. False when the thread is to end.
  bool Note() ABSL_LOCKS_EXCLUDED(mutex_);

  const FolderOptions options_;
  const std::unique_ptr<FolderEvents> events_;
  FolderSync sync_;          // of the thread
  bool is_unheard_ = false;  // of the thread: told already

  absl::Mutex mutex_;
  bool settled_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_FOLDER_WATCH_H_
