// Stands in for the registry: loads end when a test wants them to, and as it wants.
#ifndef ADAPTERD_TESTS_CORE_CATALOG_FAKE_REGISTRY_H_
#define ADAPTERD_TESTS_CORE_CATALOG_FAKE_REGISTRY_H_

#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "core/base/error.h"
#include "core/catalog/folder_sync.h"

namespace adapterd {

// Any thread. As in the real one, a first load of a folder's adapter that fails leaves a FAILED
// one, and a replace that fails leaves what was there.
class FakeRegistry {
 public:
  FolderActions Actions() {
    FolderActions actions;
    actions.load = [this](LoadRequest request, FolderActions::Done done) {
      return Load(std::move(request), std::move(done));
    };
    actions.unload = [this](UnloadRequest request, FolderActions::Done done) {
      absl::Status status;
      {
        const absl::MutexLock lock(&mutex_);
        unloads_.push_back(request);
        status = failures_[request.name];
        if (status.ok()) adapters_.erase(request.name);
      }
      done(status);
    };
    actions.get = [this](const std::string& name) { return Get(name); };
    return actions;
  }

  // Loads wait for FinishAll from now on, or no longer.
  void Hold(bool hold) {
    const absl::MutexLock lock(&mutex_);
    hold_ = hold;
  }

  // What loads and unloads of `name` end with from now on.
  void Fail(const std::string& name, absl::Status status) {
    const absl::MutexLock lock(&mutex_);
    failures_[name] = std::move(status);
  }

  // Ends the loads that wait. Gives how many these were.
  size_t FinishAll() {
    std::deque<Running> running;
    {
      const absl::MutexLock lock(&mutex_);
      running.swap(running_);
    }
    for (Running& each : running) Finish(each);
    return running.size();
  }

  void Put(AdapterSnapshot adapter) {
    const absl::MutexLock lock(&mutex_);
    const std::string name = adapter.name;
    adapters_[name] = std::move(adapter);
  }

  void Remove(const std::string& name) {
    const absl::MutexLock lock(&mutex_);
    adapters_.erase(name);
  }

  absl::StatusOr<AdapterSnapshot> Get(const std::string& name) const {
    const absl::MutexLock lock(&mutex_);
    const auto found = adapters_.find(name);
    if (found != adapters_.end()) return found->second;
    return Error(Reason::kAdapterNotFound, "no adapter " + name);
  }

  std::vector<std::string> Names() const {
    const absl::MutexLock lock(&mutex_);
    std::vector<std::string> names;
    for (const auto& [name, adapter] : adapters_) names.push_back(name);
    return names;
  }

  std::vector<LoadRequest> loads() const {
    const absl::MutexLock lock(&mutex_);
    return loads_;
  }

  std::vector<UnloadRequest> unloads() const {
    const absl::MutexLock lock(&mutex_);
    return unloads_;
  }

 private:
  struct Running {
    LoadRequest request;
    FolderActions::Done done;
  };

  FolderActions::Cancel Load(LoadRequest request, FolderActions::Done done) {
    const std::string name = request.name;
    Running running{std::move(request), std::move(done)};
    bool hold = false;
    {
      const absl::MutexLock lock(&mutex_);
      loads_.push_back(running.request);
      hold = hold_;
      if (hold) running_.push_back(std::move(running));
    }
    if (!hold) Finish(running);
    return [this, name] { Cancel(name); };
  }

  void Finish(Running& running) {
    absl::Status status;
    {
      const absl::MutexLock lock(&mutex_);
      const LoadRequest& request = running.request;
      status = failures_[request.name];
      AdapterSnapshot adapter;
      adapter.name = request.name;
      adapter.owner = request.owner;
      adapter.pinned = request.pinned;
      adapter.labels = request.labels;
      adapter.state = status.ok() ? AdapterState::kReady : AdapterState::kFailed;
      adapter.error = status;
      if (status.ok() || !adapters_.contains(request.name)) adapters_[request.name] = adapter;
    }
    running.done(status);
  }

  void Cancel(const std::string& name) {
    std::deque<Running> cancelled;
    {
      const absl::MutexLock lock(&mutex_);
      std::deque<Running> kept;
      for (Running& each : running_) {
        (each.request.name == name ? cancelled : kept).push_back(std::move(each));
      }
      running_ = std::move(kept);
    }
    for (Running& each : cancelled) each.done(absl::CancelledError("cancelled"));
  }

  mutable absl::Mutex mutex_;
  bool hold_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, absl::Status> failures_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, AdapterSnapshot> adapters_ ABSL_GUARDED_BY(mutex_);
  std::deque<Running> running_ ABSL_GUARDED_BY(mutex_);
  std::vector<LoadRequest> loads_ ABSL_GUARDED_BY(mutex_);
  std::vector<UnloadRequest> unloads_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_CATALOG_FAKE_REGISTRY_H_
