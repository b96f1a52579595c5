#include "tests/core/registry/model_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

namespace adapterd::model {

World::World(uint64_t seed) : seed_(seed) {
  for (int i = 0; i < kContents; ++i) {
    const FakeContent content = ContentOf(i, 1);
    sources_.Put(fmt::format("s{}", i), content);
    sources_.Put(fmt::format("t{}", i), ContentOf(i, 2));
    revisions_.push_back(DigestOf(content).revision);
    content_of_[revisions_.back()] = i;
  }
  unit_ = LoadedAdapter::BytesFor(kernels_, *ManifestOf(ContentOf(0, 1))).value();
  Restart();
}

FakeContent World::ContentOf(int content, int64_t changed_ns) const {
  FakeContent result;
  result.text = std::to_string(content);
  result.changed_ns = changed_ns;
  result.modules.clear();
  for (int layer = 0; layer < 1 << content; ++layer) {
    FakeModule module;
    module.path = fmt::format("model.layers.{}.self_attn.q_proj", layer);
    module.a_value = static_cast<float>(content + 1);
    result.modules.push_back(module);
  }
  return result;
}

void World::Restart() {
  registry_.reset();
  budget_ = MemoryBudget::Create(kBudget * unit_);
  RegistryOptions options;
  options.keep_revisions = kKeepRevisions;
  options.journal = &journal_;
  options.on_evict = [this](const std::string&) { ++counts_.evictions; };
  options.on_load = [this](const LoadEvent& event) {
    if (event.restored && event.status.ok()) ++counts_.restorations;
  };
  registry_.emplace(std::move(options), kernels_, sources_.opener(), budget_, io_pool_);
  registry_->Restore(journal_.all());
}

void World::Add(int name, Operation operation) {
  absl::MutexLock lock(&mutex_);
  histories_[name].push_back(std::move(operation));
}

std::vector<Operation> World::TakeHistory(int name) {
  absl::MutexLock lock(&mutex_);
  std::vector<Operation> history = std::move(histories_[name]);
  histories_[name].clear();
  std::sort(history.begin(), history.end(),
            [](const Operation& a, const Operation& b) { return a.call < b.call; });
  return history;
}

// Dropped restorations may still be ending: waits until the bytes are right.
std::string World::WhatIsWrongNow() {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  std::string wrong;
  do {
    const ListPage page = registry_->List({});
    wrong = CheckBytes(page);
    if (wrong.empty()) return CheckJournal(page);
    std::this_thread::yield();
  } while (absl::Now() < deadline);
  return wrong;
}

std::string World::CheckBytes(const ListPage& page) const {
  std::set<int> contents;
  int64_t resident = 0;
  for (const AdapterSnapshot& adapter : page.adapters) {
    int64_t units = adapter.memory_bytes / unit_;
    if (adapter.in_flight != 0) return adapter.name + " is in flight";
    if (!adapter.draining_revisions.empty()) return adapter.name + " drains";
    resident += adapter.state == AdapterState::kReady ? 1 : 0;
    std::vector<std::string> revisions = adapter.kept_revisions;
    revisions.push_back(adapter.digest.revision);
    for (const std::string& revision : revisions) {
      const int content = content_of_.at(revision);
      if ((units >> content & 1) == 0) continue;
      units -= int64_t{1} << content;
      contents.insert(content);
    }
    if (units != 0) return fmt::format("{} has {} units too many", adapter.name, units);
  }
  int64_t bytes = 0;
  for (const int content : contents) bytes += Bytes(content);
  if (bytes != budget_->used()) {
    return fmt::format("{} bytes are used, but adapters hold {}", budget_->used(), bytes);
  }
  if (registry_->totals().resident != resident) {
    return fmt::format("{} are counted as resident, and {} are", registry_->totals().resident,
                       resident);
  }
  return "";
}

std::string World::CheckJournal(const ListPage& page) const {
  const auto records = journal_.records();
  if (records.size() != page.adapters.size()) return "the journal has other names";
  for (const AdapterSnapshot& adapter : page.adapters) {
    const auto found = records.find(adapter.name);
    if (found == records.end()) return "the journal lacks " + adapter.name;
    const AdapterRecord& record = found->second;
    std::vector<std::string> kept;
    for (const RevisionRecord& revision : record.kept) kept.push_back(revision.revision);
    const bool same = record.etag == adapter.etag && record.pinned == adapter.pinned &&
                      record.enabled == adapter.enabled && record.labels == adapter.labels &&
                      record.aliases == adapter.aliases && kept == adapter.kept_revisions &&
                      record.current.revision == adapter.digest.revision &&
                      record.public_id == adapter.public_id;
    if (!same) return "the journal has another " + adapter.name;
  }
  return "";
}

void World::UnloadAll() {
  for (int name = 0; name < kNames; ++name) {
    Pending<UnloadResult> pending;
    UnloadRequest request;
    request.name = NameOf(name);
    request.force = true;
    registry_->Unload(request, pending.Callback());
    pending.Wait().IgnoreError();
  }
}

void World::Violation(const std::string& what) {
  absl::MutexLock lock(&mutex_);
  violations_.push_back(what);
}

std::vector<std::string> World::violations() const {
  absl::MutexLock lock(&mutex_);
  return violations_;
}

}  // namespace adapterd::model
