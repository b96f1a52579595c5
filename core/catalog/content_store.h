// Folders of files that clients sent, kept by their content.
//
//   FOLDER/content/KEY/FILE     complete and on disk; only removed or replaced as a whole
//   FOLDER/incoming/N/FILE      arriving, or on the way out; emptied at the next start
//
// KEY: content_key.h
#ifndef ADAPTERD_CORE_CATALOG_CONTENT_STORE_H_
#define ADAPTERD_CORE_CATALOG_CONTENT_STORE_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/formats/disk.h"
#include "core/formats/scoped_fd.h"
#include "core/formats/source_roots.h"

namespace adapterd {

class ContentStore;
class IncomingContent;

// Keeps one content from collection while it lives. Movable; must not outlive the store. Any
// thread; letting go costs a moment of a lock and no I/O.
class StoredContent {
 public:
  StoredContent() = default;
  ~StoredContent() { Release(); }
  StoredContent(StoredContent&& other) noexcept;
  StoredContent& operator=(StoredContent&& other) noexcept;

  const std::string& key() const { return key_; }  // 64 lower-case hex digits; empty: of none

 private:
  friend class ContentStore;
  StoredContent(ContentStore* store, std::string key) : store_(store), key_(std::move(key)) {}
  void Release();

  ContentStore* store_ = nullptr;
  std::string key_;
};

// Owns its folder, which no other process may use meanwhile. Any thread; Begin, Commit and Collect
// wait for the disk.
class ContentStore {
 public:
  // Makes what is missing and removes what a crash left in incoming. SOURCE_UNAVAILABLE,
  // STORAGE_FULL; the first also when another process has the store open.
  static absl::StatusOr<std::unique_ptr<ContentStore>> Open(
      const std::string& folder, std::shared_ptr<Disk> disk = std::make_shared<Disk>());

  // In a new folder below $TMPDIR that goes with the store. Nothing in it has to survive a loss of
  // power, so that nothing waits for the disk to say so.
  static absl::StatusOr<std::unique_ptr<ContentStore>> OpenTemporary();

  ~ContentStore();
  ContentStore(const ContentStore&) = delete;
  ContentStore& operator=(const ContentStore&) = delete;

  bool temporary() const { return temporary_; }

  // Where KEY names a folder, for the opener. They stay readable after the store is gone.
  const std::shared_ptr<const SourceRoots>& roots() const { return roots_; }

  // A new content, of at most `max_bytes`. It must not outlive the store.
  absl::StatusOr<std::unique_ptr<IncomingContent>> Begin(int64_t max_bytes);

  struct Collected {
    int64_t contents = 0;
    int64_t bytes = 0;
  };

  // Removes every content that is neither in `wanted()` nor kept by a StoredContent. `wanted` is
  // called while no content can arrive, once or, with nothing to remove, never: what a
  // StoredContent was let go for before the call must be in it by then. Fails with the first error;
  // what it could remove is gone all the same.
  absl::StatusOr<Collected> Collect(absl::FunctionRef<std::set<std::string>()> wanted)
      ABSL_LOCKS_EXCLUDED(moves_, mutex_);

 private:
  friend class IncomingContent;
  friend class StoredContent;
  ContentStore(std::string folder, bool temporary, std::shared_ptr<Disk> disk);

  absl::Status OpenFolders();
  absl::StatusOr<ScopedFd> OpenPart(const std::string& name);
  std::string NextName() { return std::to_string(next_name_++); }
  absl::Status Sync(int file_or_folder, std::string_view what);

  // Moves incoming/`name` to content/`key`, unless that is there and intact.
  absl::StatusOr<StoredContent> Adopt(const std::string& name, const std::string& key)
      ABSL_LOCKS_EXCLUDED(moves_, mutex_);
  absl::StatusOr<StoredContent> MoveIn(const std::string& name, const std::string& key,
                                       bool& was_there) ABSL_LOCKS_EXCLUDED(moves_, mutex_);
  absl::Status Replace(const std::string& name, const std::string& key) ABSL_LOCKS_EXCLUDED(moves_);
  bool IsIntact(const std::string& key) const;
  void RemoveIncoming(const std::string& name);
  void Release(const std::string& key) ABSL_LOCKS_EXCLUDED(mutex_);
  std::set<std::string> References() const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::set<std::string>> Keys() const;

  // Constant once open.
  const std::string folder_;
  const bool temporary_;
  const std::shared_ptr<Disk> disk_;
  ScopedFd lock_;  // of folder_
  ScopedFd incoming_;
  ScopedFd content_;
  std::shared_ptr<const SourceRoots> roots_;

  std::atomic<int64_t> next_name_{0};

  absl::Mutex moves_;  // held while entries of content/ come and go; before mutex_
  mutable absl::Mutex mutex_;
  std::map<std::string, int> references_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_CONTENT_STORE_H_
