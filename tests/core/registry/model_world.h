// Threads that do random things to one registry, and remember what they saw.
#ifndef ADAPTERD_TESTS_CORE_REGISTRY_MODEL_WORLD_H_
#define ADAPTERD_TESTS_CORE_REGISTRY_MODEL_WORLD_H_

#include <fmt/format.h>

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "core/registry/adapter_registry.h"
#include "tests/core/registry/fake_journal.h"
#include "tests/core/registry/model.h"
#include "tests/testing/fake_sources.h"
#include "tests/testing/pending.h"

namespace adapterd::model {

// A registry over kContents contents, each in two sources, with a journal and a budget for about
// half of what there is. Content i has 2^i modules, so that the bytes that a name holds tell which
// of its revisions are in memory.
class World {
 public:
  static constexpr int kNames = 4;
  static constexpr int kContents = 6;
  static constexpr int kAliases = 2;
  static constexpr int kThreads = 8;
  static constexpr size_t kKeepRevisions = 1;
  // In units of content 0, of which there are 63 in all. The largest content fits only the one.
  static constexpr int64_t kBudget = 36;
  static constexpr int64_t kSmallBudget = 16;

  explicit World(uint64_t seed);
  ~World() { sources_.OpenAllGates(); }

  // `steps` operations on kThreads threads, then nothing: every answer has come. `one_by_one`:
  // operations of one name do not overlap, and their answers are checked to the letter.
  void Run(int steps, bool one_by_one);

  // A new registry that knows what the journal holds.
  void Restart();

  // What has been seen of a name since the last call, sorted by call.
  std::vector<Operation> TakeHistory(int name);

  // Whether the registry's bytes and its journal are right, while nothing happens; else says why.
  std::string WhatIsWrongNow();

  // Everything is unloaded by this.
  void UnloadAll();

  struct Counts {
    std::atomic<int64_t> loads{0};
    std::atomic<int64_t> handles{0};
    std::atomic<int64_t> evictions{0};
    std::atomic<int64_t> restorations{0};
    std::atomic<int64_t> refused_for_memory{0};
    std::atomic<int64_t> cancelled{0};
  };
  const Counts& counts() const { return counts_; }
  // What a handle or the budget showed that can never be right.
  std::vector<std::string> violations() const;

 private:
  class Worker;

  // Calls `start` with a callback, maybe cancels, waits, and gives the two stamps.
  template <typename T>
  struct Answer {
    int64_t call;
    int64_t returned;
    absl::StatusOr<T> value;
  };

  static std::string NameOf(int name) { return fmt::format("n{}", name); }
  static std::string AliasOf(int alias) { return fmt::format("a{}", alias); }
  FakeContent ContentOf(int content, int64_t changed_ns) const;
  int64_t Bytes(int content) const { return unit_ << content; }
  std::string CheckBytes(const ListPage& page) const;
  std::string CheckJournal(const ListPage& page) const;
  void Add(int name, Operation operation);
  void Violation(const std::string& what);
  int64_t Stamp() { return ++clock_; }

  const uint64_t seed_;
  uint64_t runs_ = 0;
  FakeSources sources_;
  FakeJournal journal_;
  Kernels kernels_;
  ThreadPool io_pool_{"io", 4};
  int64_t unit_ = 0;  // bytes of content 0
  std::vector<std::string> revisions_;
  std::map<std::string, int> content_of_;  // by revision
  std::shared_ptr<MemoryBudget> budget_;
  std::atomic<bool> budget_changes_{false};
  std::atomic<int64_t> clock_{0};
  absl::Mutex names_[kNames];  // held during an operation that is one by one
  mutable absl::Mutex mutex_;
  std::vector<Operation> histories_[kNames] ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> violations_ ABSL_GUARDED_BY(mutex_);
  Counts counts_;
  std::optional<AdapterRegistry> registry_;
};

}  // namespace adapterd::model

#endif  // ADAPTERD_TESTS_CORE_REGISTRY_MODEL_WORLD_H_
