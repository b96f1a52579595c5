// Makes the adapters that are loaded those that a folder holds.
#ifndef ADAPTERD_CORE_CATALOG_FOLDER_SYNC_H_
#define ADAPTERD_CORE_CATALOG_FOLDER_SYNC_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/catalog/folder_actions.h"
#include "core/catalog/folder_scan.h"
#include "core/formats/renewable_roots.h"

namespace adapterd {

// What operators should know, each once and not again at every scan. Loads that went well are the
// registry's to tell.
struct FolderEvent {
  enum class Kind {
    kUnloaded,    // its folder is gone
    kFailed,      // to load; again only for another reason or after a change
    kSkipped,     // clients own an adapter of this name, which stays as it is
    kMisnamed,    // a folder whose name is no adapter's
    kUnreadable,  // the whole folder; all adapters stay as they are until it is back
    kReadable,    // again
    kUnheard,     // changes are seen by the regular scan alone
  };
  Kind kind = Kind::kUnloaded;
  std::string name;     // of the adapter, or as misnamed
  absl::Status status;  // why, of kFailed, kUnreadable and kUnheard
};

struct FolderOptions {
  std::string path;
  // Between scans when nothing is heard: network file systems tell nothing.
  absl::Duration period = absl::Seconds(5);
  // A folder is believed once it was found the same in two scans this far apart: copies write more
  // often than that.
  absl::Duration settle = absl::Milliseconds(300);
  std::function<void(const FolderEvent&)> report;  // on the scanning thread; may be empty
};

// Loads run on the registry's threads; this many at a time leave room for those of clients.
inline constexpr int kMaxConcurrentLoads = 8;

// What failed for a reason that may pass by itself is tried again after the first pause, which
// doubles up to the last one.
inline constexpr absl::Duration kFirstRetryPause = absl::Seconds(1);
inline constexpr absl::Duration kLastRetryPause = absl::Minutes(1);

// A folder with a file that is still open for writing is believed only when it has not changed for
// so long: some programs never close what they wrote.
inline constexpr absl::Duration kWriterPatience = absl::Minutes(1);

// Decides and starts; waits for nothing. Each adapter is loaded when its folder is new or changed,
// and unloaded when it is gone, both only once that has settled. An adapter that clients unloaded
// comes back, one that they own is left alone, and pins and labels that they set stay.
//
// A folder that cannot be read changes nothing. Neither does another folder in its place that has
// no adapters at all, which is how a volume looks that is not mounted.
//
// Times are durations since any one instant and never go back; the wall clock may. One thread;
// callbacks of the actions come from any. The destructor cancels loads and waits for them.
class FolderSync {
 public:
  // `roots` are set to the folder as each scan opens it. `wake` runs on any thread when Advance has
  // something to do.
  FolderSync(FolderOptions options, FolderActions actions, std::shared_ptr<RenewableRoots> roots,
             std::function<void()> wake);
  ~FolderSync();
  FolderSync(const FolderSync&) = delete;
  FolderSync& operator=(const FolderSync&) = delete;

  // Looks at the folder and starts what follows from it. `being_written` are the folders, as paths,
  // of files that are open for writing as far as is known. The caller scans again after `pause`.
  void Scan(absl::Duration now, const std::set<std::string>& being_written = {});
  absl::Duration pause() const;

  // Takes note of loads that ended and starts those that waited for a place.
  void Advance(absl::Duration now);

  // What was there at the first scan, and did not change right after it, is loaded or has failed.
  bool settled() const { return believed_first_ && queue_.empty() && loads_running_ == 0; }

  // Where changes should be heard, as of the last scan.
  const std::vector<std::string>& watchable() const { return watchable_; }

 private:
  struct Entry {
    std::optional<FolderScan::Fingerprint> found;  // by the last scan; none: no such folder
    absl::Duration since;                          // the first scan that found it so
    std::optional<FolderScan::Fingerprint> tried;  // what the last load was to read
    bool tried_before = false;                     // the load before that one, too
    absl::Status outcome;                          // of the last load that ended
    absl::Duration retry_at;
    absl::Duration retry_pause = kFirstRetryPause;
    bool is_running = false;  // a load or an unload
    bool is_written = false;  // now, as far as is known
    FolderActions::Cancel cancel;
    bool skip_reported = false;
  };
  struct Ended {
    std::string name;
    bool is_load = false;
    absl::Status status;
  };

  absl::Status Look(absl::Duration now, const std::set<std::string>& being_written);
  void NoteWriters(const std::set<std::string>& being_written);
  void Observe(FolderScan scan, absl::Duration now);
  void Plan(absl::Duration now);
  // Starts or queues what `entry` asks for. False when there is nothing left to keep it for.
  bool Decide(const std::string& name, Entry& entry, absl::Duration now);
  bool IsBelieved(const Entry& entry) const {
    const bool waits_for_writer = entry.found && entry.is_written;
    return last_scan_ - entry.since >= (waits_for_writer ? kWriterPatience : options_.settle);
  }
  bool WantsLoad(const std::string& name, Entry& entry, absl::Duration now);
  bool IsClients(const std::string& name, Entry& entry,
                 const absl::StatusOr<AdapterSnapshot>& snapshot);
  void StartLoads();
  void StartLoad(const std::string& name, Entry& entry);
  // False when nothing of ours is left under that name.
  bool StartUnload(const std::string& name, Entry& entry);
  FolderActions::Done Ending(const std::string& name, bool is_load);
  void TakeEnded(absl::Duration now);
  void Take(const Ended& ended, Entry& entry, absl::Duration now);
  void Report(FolderEvent::Kind kind, const std::string& name, absl::Status status = {}) const;

  const FolderOptions options_;
  const FolderActions actions_;
  const std::shared_ptr<RenewableRoots> roots_;
  const std::function<void()> wake_;

  // Of the scanning thread.
  std::map<std::string, Entry> entries_;
  std::deque<std::string> queue_;  // to load, as the last scan found
  int loads_running_ = 0;
  std::optional<absl::Duration> first_scan_;
  absl::Duration last_scan_;     // that could read the folder
  bool believed_first_ = false;  // a scan has planned what the first one found
  FileIdentity identity_;        // of the folder at the last scan
  std::string unreadable_;       // why, as reported; empty: it is readable
  std::set<std::string> misnamed_;
  std::vector<std::string> watchable_;

  absl::Mutex mutex_;
  std::vector<Ended> ended_ ABSL_GUARDED_BY(mutex_);
  int running_ ABSL_GUARDED_BY(mutex_) = 0;  // callbacks to come
};

}  // namespace adapterd

#endif  // ADAPTERD_CORE_CATALOG_FOLDER_SYNC_H_
