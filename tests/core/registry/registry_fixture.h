// A registry over fake sources, run with one I/O thread and with four.
#ifndef ADAPTERD_TESTS_CORE_REGISTRY_REGISTRY_FIXTURE_H_
#define ADAPTERD_TESTS_CORE_REGISTRY_REGISTRY_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/registry/adapter_registry.h"
#include "tests/testing/fake_sources.h"
#include "tests/testing/pending.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {

class RegistryTest : public ::testing::TestWithParam<int> {
 protected:
  static constexpr int64_t kRoomy = int64_t{1} << 30;

  RegistryTest() : io_pool_("io", GetParam()) { Start(kRoomy); }
  ~RegistryTest() override { sources_.OpenAllGates(); }

  // A new, empty registry with this budget, and with options_.
  void Start(int64_t budget_bytes, const std::string& public_id_template = "{base}:{name}") {
    registry_.reset();
    budget_ = MemoryBudget::Create(budget_bytes);
    RegistryOptions options = options_;
    options.public_id_template = public_id_template;
    options.on_load = [this](const LoadEvent& event) {
      absl::MutexLock lock(&events_mutex_);
      events_.push_back(event);
    };
    options.on_evict = [this](const std::string& name) {
      absl::MutexLock lock(&events_mutex_);
      evictions_.push_back(name);
    };
    registry_.emplace(std::move(options), kernels_, sources_.opener(), budget_, io_pool_);
  }

  static LoadRequest Request(const std::string& name, const std::string& source = "a") {
    LoadRequest request;
    request.name = name;
    request.source.source = source;
    return request;
  }

  // The request with `replace` set.
  static LoadRequest Replacing(LoadRequest request) {
    request.replace = true;
    return request;
  }

  struct Started {
    Pending<LoadResult> pending;
    AdapterRegistry::TicketPtr ticket;
  };

  Started StartLoad(LoadRequest request) {
    Started started;
    started.ticket = registry_->Load(std::move(request), started.pending.Callback());
    return started;
  }
  absl::StatusOr<LoadResult> Load(LoadRequest request) {
    return StartLoad(std::move(request)).pending.Wait();
  }

  static UnloadRequest UnloadOf(const std::string& name, const std::string& revision = "") {
    UnloadRequest request;
    request.name = name;
    request.revision = revision;
    return request;
  }

  struct StartedUnload {
    Pending<UnloadResult> pending;
    AdapterRegistry::TicketPtr ticket;
  };

  StartedUnload StartUnload(UnloadRequest request) {
    StartedUnload started;
    started.ticket = registry_->Unload(std::move(request), started.pending.Callback());
    return started;
  }
  absl::StatusOr<UnloadResult> Unload(UnloadRequest request) {
    return StartUnload(std::move(request)).pending.Wait();
  }

  using Handles = std::vector<AdapterHandle>;
  struct StartedAcquire {
    Pending<Handles> pending;
    AdapterRegistry::TicketPtr ticket;
  };

  StartedAcquire StartAcquire(std::vector<AdapterRef> refs) {
    StartedAcquire started;
    started.ticket = registry_->Acquire(std::move(refs), false, started.pending.Callback());
    return started;
  }
  absl::StatusOr<Handles> Acquire(std::vector<AdapterRef> refs) {
    return StartAcquire(std::move(refs)).pending.Wait();
  }

  absl::StatusOr<AdapterSnapshot> Update(UpdateRequest request) {
    Pending<AdapterSnapshot> pending;
    registry_->Update(std::move(request), pending.Callback());
    return pending.Wait();
  }
  absl::StatusOr<AdapterSnapshot> SetAlias(const std::string& name, const std::string& alias,
                                           const std::string& revision) {
    Pending<AdapterSnapshot> pending;
    registry_->SetAlias(name, alias, revision, pending.Callback());
    return pending.Wait();
  }
  absl::StatusOr<AdapterSnapshot> Rollback(const std::string& name, const std::string& revision) {
    Pending<AdapterSnapshot> pending;
    registry_->Rollback(name, revision, pending.Callback());
    return pending.Wait();
  }

  // Content of its own for each text; all cost the same, Unit().
  static FakeContent ContentOf(const std::string& text, int64_t changed_ns = 1) {
    FakeContent content;
    content.text = text;
    content.changed_ns = changed_ns;
    return content;
  }
  static std::string RevisionOf(const std::string& text) {
    return DigestOf(ContentOf(text)).revision;
  }
  int64_t Unit() const { return BytesOf(FakeContent()); }

  // A source of that name with content of its own, loaded under that name.
  absl::StatusOr<LoadResult> LoadOwn(const std::string& name) {
    sources_.Put(name, ContentOf(name));
    return Load(Request(name, name));
  }

  // All that is idle.
  void EvictAll() {
    const int64_t limit = budget_->limit();
    registry_->SetMemoryBudget(0);
    registry_->SetMemoryBudget(limit);
  }

  AdapterState StateOf(const std::string& name) const { return registry_->Get(name)->state; }

  std::vector<std::string> Evictions() {
    absl::MutexLock lock(&events_mutex_);
    return evictions_;
  }

  // What a loaded adapter with this content costs.
  int64_t BytesOf(const FakeContent& content) const {
    return LoadedAdapter::BytesFor(kernels_, *ManifestOf(content)).value();
  }

  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const AdapterSnapshot& adapter : registry_->List({}).adapters)
      names.push_back(adapter.name);
    return names;
  }

  std::vector<LoadEvent> Events() {
    absl::MutexLock lock(&events_mutex_);
    return events_;
  }

  RegistryOptions options_;  // for Start
  FakeSources sources_;
  Kernels kernels_;
  std::shared_ptr<MemoryBudget> budget_;
  ThreadPool io_pool_;
  absl::Mutex events_mutex_;
  std::vector<LoadEvent> events_ ABSL_GUARDED_BY(events_mutex_);
  std::vector<std::string> evictions_ ABSL_GUARDED_BY(events_mutex_);
  std::optional<AdapterRegistry> registry_;
};

inline std::string ThreadsName(const ::testing::TestParamInfo<int>& info) {
  return std::to_string(info.param) + (info.param == 1 ? "IoThread" : "IoThreads");
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_CORE_REGISTRY_REGISTRY_FIXTURE_H_
