#include "core/catalog/folder_sync.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/base/status_macros.h"

namespace adapterd {
namespace {

// Whether trying again may help though the files stay as they are.
bool MayPass(const absl::Status& status) {
  switch (GetErrorDetails(status).reason) {
    case Reason::kSourceChanged:
    case Reason::kSourceUnavailable:
    case Reason::kMemoryBudgetExceeded:
    case Reason::kOverloaded:
      return true;
    default:
      return false;
  }
}

bool SameReason(const absl::Status& a, const absl::Status& b) {
  return !a.ok() && !b.ok() && GetErrorDetails(a).reason == GetErrorDetails(b).reason;
}

bool SameFolder(const FileIdentity& a, const FileIdentity& b) {
  return a.device == b.device && a.inode == b.inode;
}

}  // namespace

FolderSync::FolderSync(FolderOptions options, FolderActions actions,
                       std::shared_ptr<RenewableRoots> roots, std::function<void()> wake)
    : options_(std::move(options)),
      actions_(std::move(actions)),
      roots_(std::move(roots)),
      wake_(std::move(wake)) {}

FolderSync::~FolderSync() {
  for (auto& [name, entry] : entries_) {
    if (entry.is_running && entry.cancel) entry.cancel();
  }
  const absl::MutexLock lock(&mutex_);
  const auto is_idle = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return running_ == 0; };
  mutex_.Await(absl::Condition(&is_idle));
}

void FolderSync::Scan(absl::Duration now, const std::set<std::string>& being_written) {
  TakeEnded(now);
  const absl::Status status = Look(now, being_written);
  if (!status.ok() && unreadable_ != status.message()) {
    unreadable_.assign(status.message().data(), status.message().size());
    Report(FolderEvent::Kind::kUnreadable, "", status);
  } else if (status.ok() && !unreadable_.empty()) {
    unreadable_.clear();
    Report(FolderEvent::Kind::kReadable, "");
  }
  StartLoads();
}

void FolderSync::Advance(absl::Duration now) {
  TakeEnded(now);
  StartLoads();
}

absl::Status FolderSync::Look(absl::Duration now, const std::set<std::string>& being_written) {
  ASSIGN_OR_RETURN(FolderScan scan, ScanFolder(options_.path));
  if (scan.adapters.empty() && !entries_.empty() && !SameFolder(scan.identity, identity_)) {
    return Error(Reason::kSourceUnavailable,
                 fmt::format("{} is another folder than before, and without adapters; the loaded "
                             "ones stay until it has some",
                             Quoted(options_.path)));
  }
  Observe(std::move(scan), now);
  NoteWriters(being_written);
  Plan(now);
  return absl::OkStatus();
}

void FolderSync::Observe(FolderScan scan, absl::Duration now) {
  const auto note = [&](Entry& entry, std::optional<FolderScan::Fingerprint> found) {
    if (entry.found == found) return;
    entry.found = std::move(found);
    entry.since = now;
  };
  for (auto& [name, entry] : entries_) {
    if (!scan.adapters.contains(name)) note(entry, std::nullopt);
  }
  for (auto& [name, fingerprint] : scan.adapters) note(entries_[name], std::move(fingerprint));
  for (const std::string& name : scan.misnamed) {
    if (!misnamed_.contains(name)) Report(FolderEvent::Kind::kMisnamed, name);
  }
  misnamed_ = {scan.misnamed.begin(), scan.misnamed.end()};
  identity_ = scan.identity;
  watchable_ = std::move(scan.watchable);
  roots_->Set(std::move(scan.roots));
  first_scan_ = first_scan_.value_or(now);
  last_scan_ = now;
}

void FolderSync::NoteWriters(const std::set<std::string>& being_written) {
  for (auto& [name, entry] : entries_) {
    const std::string folder = fmt::format("{}/{}", options_.path, name);
    // Behind all that lies in the folder comes what begins with the character behind "/".
    const auto inside = being_written.lower_bound(folder + '/');
    entry.is_written = being_written.contains(folder) ||
                       (inside != being_written.end() && inside->starts_with(folder + '/'));
  }
}

void FolderSync::Plan(absl::Duration now) {
  queue_.clear();
  for (auto it = entries_.begin(); it != entries_.end();) {
    it = Decide(it->first, it->second, now) ? std::next(it) : entries_.erase(it);
  }
  believed_first_ |= entries_.empty() || now - *first_scan_ >= options_.settle;
}

bool FolderSync::Decide(const std::string& name, Entry& entry, absl::Duration now) {
  if (entry.is_running || !IsBelieved(entry)) return true;
  if (!entry.found) return StartUnload(name, entry);
  if (WantsLoad(name, entry, now)) queue_.push_back(name);
  return true;
}

absl::Duration FolderSync::pause() const {
  const bool is_unsettled = std::any_of(entries_.begin(), entries_.end(), [&](const auto& named) {
    return !IsBelieved(named.second);
  });
  return unreadable_.empty() && is_unsettled ? options_.settle : options_.period;
}

bool FolderSync::IsClients(const std::string& name, Entry& entry,
                           const absl::StatusOr<AdapterSnapshot>& snapshot) {
  const bool is_clients = snapshot.ok() && snapshot->owner == AdapterOwner::kClients;
  if (is_clients && !entry.skip_reported) Report(FolderEvent::Kind::kSkipped, name);
  entry.skip_reported = is_clients;
  return is_clients;
}

bool FolderSync::WantsLoad(const std::string& name, Entry& entry, absl::Duration now) {
  const absl::StatusOr<AdapterSnapshot> snapshot = actions_.get(name);
  if (IsClients(name, entry, snapshot)) return false;
  if (entry.tried != entry.found) return true;
  // A reload after an eviction fails without us.
  const absl::Status& failure =
      entry.outcome.ok() && snapshot.ok() ? snapshot->error : entry.outcome;
  if (failure.ok()) return !snapshot.ok();
  return MayPass(failure) && now >= entry.retry_at;
}

void FolderSync::StartLoads() {
  while (loads_running_ < kMaxConcurrentLoads && !queue_.empty()) {
    const std::string name = std::move(queue_.front());
    queue_.pop_front();
    StartLoad(name, entries_.at(name));
  }
}

void FolderSync::StartLoad(const std::string& name, Entry& entry) {
  const absl::StatusOr<AdapterSnapshot> snapshot = actions_.get(name);
  if (IsClients(name, entry, snapshot)) return;
  LoadRequest request;
  request.name = name;
  request.source.source = name;
  request.source.watched = true;
  request.replace = true;
  request.owner = AdapterOwner::kFolder;
  if (snapshot.ok()) {
    request.pinned = snapshot->pinned;
    request.labels = snapshot->labels;
  }
  entry.tried_before = entry.tried == entry.found;
  if (!entry.tried_before) entry.retry_pause = kFirstRetryPause;
  entry.tried = entry.found;
  entry.is_running = true;
  ++loads_running_;
  entry.cancel = actions_.load(std::move(request), Ending(name, true));
}

bool FolderSync::StartUnload(const std::string& name, Entry& entry) {
  const absl::StatusOr<AdapterSnapshot> snapshot = actions_.get(name);
  if (!snapshot.ok() || snapshot->owner == AdapterOwner::kClients) return false;
  entry.is_running = true;
  UnloadRequest request;
  request.name = name;
  request.force = true;
  request.wait = false;
  actions_.unload(std::move(request), Ending(name, false));
  return true;
}

FolderActions::Done FolderSync::Ending(const std::string& name, bool is_load) {
  const absl::MutexLock lock(&mutex_);
  ++running_;
  return [this, name, is_load](absl::Status status) {
    // Under the lock to the end: the destructor may go on as soon as it is free.
    const absl::MutexLock ending_lock(&mutex_);
    ended_.push_back({name, is_load, std::move(status)});
    wake_();
    --running_;
  };
}

void FolderSync::TakeEnded(absl::Duration now) {
  std::vector<Ended> ended;
  {
    const absl::MutexLock lock(&mutex_);
    ended.swap(ended_);
  }
  for (const Ended& each : ended) {
    const auto it = entries_.find(each.name);  // there, because what runs is kept
    Take(each, it->second, now);
    // An unload that failed would fail again: the next scan is soon enough.
    if (!each.is_load && !each.status.ok()) continue;
    // The folder may have moved on meanwhile.
    if (!Decide(it->first, it->second, now)) entries_.erase(it);
  }
}

void FolderSync::Take(const Ended& ended, Entry& entry, absl::Duration now) {
  entry.is_running = false;
  entry.cancel = nullptr;
  if (!ended.is_load) {
    if (ended.status.ok()) {
      Report(FolderEvent::Kind::kUnloaded, ended.name);
      entry.tried.reset();
    }
    return;
  }
  --loads_running_;
  if (ended.status.ok()) {
    entry.retry_pause = kFirstRetryPause;
  } else {
    const bool is_known = entry.tried_before && SameReason(entry.outcome, ended.status);
    if (!is_known) Report(FolderEvent::Kind::kFailed, ended.name, ended.status);
    entry.retry_at = now + entry.retry_pause;
    entry.retry_pause = std::min(2 * entry.retry_pause, kLastRetryPause);
  }
  entry.outcome = ended.status;
}

void FolderSync::Report(FolderEvent::Kind kind, const std::string& name,
                        absl::Status status) const {
  if (options_.report) options_.report({kind, name, std::move(status)});
}

}  // namespace adapterd
