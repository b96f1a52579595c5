// What the threads of a World do.
#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "tests/core/registry/model_world.h"

namespace adapterd::model {
namespace {

// Reasons that say nothing about the state of a name: nothing happened.
bool SaysNothing(const absl::Status& status) {
  if (status.ok()) return false;
  const Reason reason = GetErrorDetails(status).reason;
  return reason == Reason::kMemoryBudgetExceeded || reason == Reason::kSourceUnavailable ||
         reason == Reason::kStorageFull || reason == Reason::kCancelled;
}

std::string Short(const std::string& revision) { return revision.substr(0, 4); }

std::string OutcomeOf(const absl::Status& status) {
  return status.ok() ? "OK" : std::string(ReasonName(GetErrorDetails(status).reason));
}

std::string MetadataOf(const absl::Status& status, const std::string& key) {
  for (const auto& [present, value] : GetErrorDetails(status).metadata) {
    if (present == key) return value;
  }
  return "";
}

Operation Read(const std::string& text, std::function<bool(const State&)> fits) {
  Operation read;
  read.text = text;
  read.is_read = true;
  read.step = [fits = std::move(fits)](State& state) { return fits(state); };
  return read;
}

}  // namespace

// One thread of World::Run.
class World::Worker {
 public:
  Worker(World& world, uint64_t seed, bool one_by_one)
      : world_(world), random_(seed), one_by_one_(one_by_one) {}

  void Step() {
    const int name = Pick(kNames);
    const std::vector<int> locked = one_by_one_ ? Lock(name) : std::vector<int>();
    Do(name);
    for (const int each : locked) world_.names_[each].Unlock();
    if (world_.budget_changes_) return;
    const int64_t used = world_.budget_->used();
    if (used > kBudget * world_.unit_) {
      world_.Violation(fmt::format("{} of {} bytes are used", used, kBudget * world_.unit_));
    }
  }

 private:
  int Pick(int n) { return static_cast<int>(random_() % n); }
  bool OneIn(int n) { return Pick(n) == 0; }
  const std::string& AnyRevision() { return world_.revisions_[Pick(kContents)]; }

  // Its own name, and for operations on several all of them.
  std::vector<int> Lock(int name) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    std::vector<int> locked = {name};
    several_ = OneIn(6);
    if (several_) locked = {0, 1, 2, 3};
    for (const int each : locked) world_.names_[each].Lock();
    return locked;
  }

  void Do(int name) {
    const int what = Pick(100);
    if (what < 25) {
      Load(name);
    } else if (what < 31) {
      Unload(name);
    } else if (what < 39) {
      Update(name);
    } else if (what < 47) {
      SetAlias(name);
    } else if (what < 54) {
      Rollback(name);
    } else if (what < 84) {
      Acquire(name);
    } else if (what < 90) {
      Get(name);
    } else if (what < 94) {
      List();
    } else if (what < 97) {
      Disturb();
    } else if (world_.budget_changes_) {
      const int64_t units = kSmallBudget + Pick(kBudget - kSmallBudget + 1);
      world_.registry_->SetMemoryBudget(units * world_.unit_);
    }
  }

  template <typename T, typename Start>
  Answer<T> Ask(const Start& start, bool may_cancel = true) {
    Pending<T> pending;
    const int64_t call = world_.Stamp();
    const AdapterRegistry::TicketPtr ticket = start(pending.Callback());
    if (may_cancel && OneIn(8)) {
      for (int i = Pick(20); i > 0; --i) std::this_thread::yield();
      world_.registry_->Cancel(ticket);
    }
    absl::StatusOr<T> value = pending.Wait();
    if (absl::IsCancelled(value.status())) ++world_.counts_.cancelled;
    if (!value.ok() && GetErrorDetails(value.status()).reason == Reason::kMemoryBudgetExceeded) {
      ++world_.counts_.refused_for_memory;
    }
    return {call, world_.Stamp(), std::move(value)};
  }

  void Record(int name, int64_t call, int64_t returned, Operation operation) {
    operation.call = call;
    operation.returned = returned;
    world_.Add(name, std::move(operation));
  }

  void Load(int name) {
    LoadRequest request;
    const int content = Pick(kContents);
    request.name = NameOf(name);
    request.source.source = fmt::format("{}{}", OneIn(2) ? "s" : "t", content);
    request.pinned = OneIn(8);
    request.labels = {{"team", OneIn(4) ? "red" : "blue"}};
    request.replace = !OneIn(3);
    Answer<LoadResult> answer = Ask<LoadResult>(
        [&](auto done) { return world_.registry_->Load(request, std::move(done)); });
    const absl::Status status = answer.value.status();
    Operation load;
    load.text = fmt::format("Load {}{}{} {}", Short(world_.revisions_[content]),
                            request.pinned ? " pinned" : "", request.replace ? " replace" : "",
                            OutcomeOf(status));
    load.is_optional = absl::IsCancelled(status);
    if (load.is_optional) {
      // A load that is dropped may be past the point where it can be: what is asked for next comes
      // after it.
      UpdateRequest nothing;
      nothing.name = request.name;
      answer.returned =
          Ask<AdapterSnapshot>(
              [&](auto done) { return world_.registry_->Update(nothing, std::move(done)); }, false)
              .returned;
    } else if (SaysNothing(status)) {
      return;
    }
    const bool strict = one_by_one_;
    load.step = [request, revision = world_.revisions_[content], status, strict,
                 result = answer.value.ok() ? *answer.value : LoadResult()](State& state) {
      const bool same = state.exists && state.revision == revision &&
                        state.pinned == request.pinned && state.labels == request.labels;
      const bool allowed = !state.exists || same || request.replace;
      if (!status.ok() && !absl::IsCancelled(status)) {
        return !allowed && GetErrorDetails(status).reason == Reason::kAdapterExists;
      }
      if (!allowed) return false;
      if (status.ok()) {
        // Callers that share one load get one answer.
        if (result.already_loaded && !same) return false;
        if (strict && result.already_loaded != same) return false;
        const std::string replaced = state.exists && !same ? state.revision : "";
        if (strict && result.replaced_revision != replaced) return false;
      }
      if (!same) {
        state.MakeCurrent(revision, kKeepRevisions);
        state.exists = true;
        state.pinned = request.pinned;
        state.labels = request.labels;
        state.etag = result.adapter.etag;
      } else if (state.etag.empty() || !status.ok() || result.already_loaded) {
        state.etag = result.adapter.etag;  // of an evicted adapter it changes
      }
      return !status.ok() || Shows(state, result.adapter);
    };
    if (status.ok()) ++world_.counts_.loads;
    Record(name, answer.call, answer.returned, std::move(load));
  }

  void Unload(int name) {
    UnloadRequest request;
    request.name = NameOf(name);
    request.force = OneIn(2);
    request.wait = OneIn(2);
    if (OneIn(4)) request.revision = AnyRevision();
    const Answer<UnloadResult> answer = Ask<UnloadResult>(
        [&](auto done) { return world_.registry_->Unload(request, std::move(done)); });
    const absl::Status status = answer.value.status();
    if (SaysNothing(status)) return;
    if (status.ok() && request.wait && !answer.value->freed)
      world_.Violation("unload did not wait");
    Operation unload;
    unload.text = fmt::format("Unload {}{} {}", Short(request.revision),
                              request.force ? " force" : "", OutcomeOf(status));
    unload.is_read = !status.ok();
    unload.step = [request, status](State& state) {
      if (!state.exists) return HasReason(status, Reason::kAdapterNotFound);
      if (!request.revision.empty() && request.revision != state.revision) {
        return HasReason(status, Reason::kRevisionMismatch);
      }
      if (state.pinned && !request.force) return HasReason(status, Reason::kAdapterPinned);
      state = State();
      return status.ok();
    };
    Record(name, answer.call, answer.returned, std::move(unload));
  }

  static bool HasReason(const absl::Status& status, Reason reason) {
    return !status.ok() && GetErrorDetails(status).reason == reason;
  }

  // A change that `apply` makes, or refuses; what the registry answered has to be the same.
  void RecordChange(int name, const std::string& text, const Answer<AdapterSnapshot>& answer,
                    std::function<std::optional<Reason>(State&)> apply) {
    const absl::Status status = answer.value.status();
    if (SaysNothing(status)) return;
    Operation change;
    change.text = text + " " + OutcomeOf(status);
    change.is_read = !status.ok();
    change.step = [apply = std::move(apply), status,
                   seen = answer.value.ok() ? *answer.value : AdapterSnapshot()](State& state) {
      const State before = state;
      const std::optional<Reason> refused =
          state.exists ? apply(state) : std::optional<Reason>(Reason::kAdapterNotFound);
      if (refused || !status.ok()) {
        state = before;
        return refused && HasReason(status, *refused);
      }
      State same = state;
      same.etag = before.etag;
      if (same != before) state.etag = seen.etag;
      return Shows(state, seen);
    };
    Record(name, answer.call, answer.returned, std::move(change));
  }

  void Update(int name) {
    UpdateRequest request;
    request.name = NameOf(name);
    if (OneIn(2)) request.enabled = !OneIn(4);
    if (OneIn(2)) request.pinned = OneIn(4);
    if (OneIn(2)) request.labels = Labels{{"team", OneIn(2) ? "red" : "blue"}};
    if (OneIn(4)) {
      const absl::StatusOr<AdapterSnapshot> now = world_.registry_->Get(request.name);
      if (now.ok()) request.etag = now->etag;
    }
    const auto answer = Ask<AdapterSnapshot>(
        [&](auto done) { return world_.registry_->Update(request, std::move(done)); });
    const bool fits = !HasReason(answer.value.status(), Reason::kEtagMismatch);
    RecordChange(name, "Update", answer, [request, fits](State& state) -> std::optional<Reason> {
      const bool is_known = !request.etag.empty() && !state.etag.empty();
      if (is_known ? request.etag != state.etag : !fits) return Reason::kEtagMismatch;
      state.enabled = request.enabled.value_or(state.enabled);
      state.pinned = request.pinned.value_or(state.pinned);
      state.labels = request.labels.value_or(state.labels);
      return std::nullopt;
    });
  }

  void SetAlias(int name) {
    const std::string alias = AliasOf(Pick(kAliases));
    const std::string revision = OneIn(3) ? "" : AnyRevision();
    const auto answer = Ask<AdapterSnapshot>([&](auto done) {
      return world_.registry_->SetAlias(NameOf(name), alias, revision, std::move(done));
    });
    RecordChange(name, fmt::format("SetAlias {} {}", alias, Short(revision)), answer,
                 [alias, revision](State& state) -> std::optional<Reason> {
                   if (revision.empty()) {
                     state.aliases.erase(alias);
                   } else if (!state.Has(revision)) {
                     return Reason::kRevisionMismatch;
                   } else {
                     state.aliases[alias] = revision;
                   }
                   state.DropUnkept(kKeepRevisions);
                   return std::nullopt;
                 });
  }

  void Rollback(int name) {
    const std::string revision = AnyRevision();
    const auto answer = Ask<AdapterSnapshot>([&](auto done) {
      return world_.registry_->Rollback(NameOf(name), revision, std::move(done));
    });
    RecordChange(name, "Rollback " + Short(revision), answer,
                 [revision](State& state) -> std::optional<Reason> {
                   if (!state.Has(revision)) return Reason::kRevisionMismatch;
                   if (revision != state.revision) state.MakeCurrent(revision, kKeepRevisions);
                   return std::nullopt;
                 });
  }

  void Acquire(int name) {
    std::vector<int> names = {name};
    if (!one_by_one_ || several_) {
      for (int more = Pick(3); more > 0; --more) names.push_back(Pick(kNames));
    }
    std::vector<AdapterRef> refs;
    for (const int each : names) {
      AdapterRef ref{NameOf(each), "", ""};
      if (OneIn(5)) ref.revision = AnyRevision();
      if (OneIn(5)) ref.alias = AliasOf(Pick(kAliases));
      refs.push_back(ref);
    }
    const bool skip = OneIn(2);
    const auto answer = Ask<std::vector<AdapterHandle>>(
        [&](auto done) { return world_.registry_->Acquire(refs, skip, std::move(done)); });
    const absl::Status status = answer.value.status();
    if (SaysNothing(status)) return;
    std::string failed = MetadataOf(status.ok() ? absl::InternalError("") : status, "adapter");
    failed = failed.substr(0, failed.find('@'));
    for (size_t i = 0; i < refs.size(); ++i) {
      const AdapterRef& ref = refs[i];
      const std::string text =
          fmt::format("Acquire {}@{} {}", Short(ref.revision), ref.alias, OutcomeOf(status));
      if (status.ok()) {
        const AdapterHandle& handle = (*answer.value)[i];
        const std::string got = handle.empty() ? "" : handle->revision();
        Record(names[i], answer.call, answer.returned,
               Read(text + " " + Short(got), [ref, skip, got](const State& state) {
                 if (got.empty()) return state.exists && !state.enabled && skip;
                 const Resolved resolved = Resolve(state, ref);
                 return state.enabled && !resolved.error && resolved.revision == got;
               }));
      } else if (ref.name == failed) {
        RecordRefusal(names, refs, i, text, answer.call, answer.returned, status);
        break;
      }
    }
    if (status.ok()) Hold(*answer.value);
  }

  // Some ref of the name of refs[i] was refused, nobody knows which.
  void RecordRefusal(const std::vector<int>& names, const std::vector<AdapterRef>& refs, size_t i,
                     const std::string& text, int64_t call, int64_t returned,
                     const absl::Status& status) {
    Record(names[i], call, returned,
           Read(text, [refs, name = refs[i].name, status](const State& s) {
             return std::any_of(refs.begin(), refs.end(), [&](const AdapterRef& ref) {
               if (ref.name != name) return false;
               if (s.exists && !s.enabled) return HasReason(status, Reason::kAdapterDisabled);
               const Resolved resolved = Resolve(s, ref);
               return resolved.error && HasReason(status, *resolved.error);
             });
           }));
  }

  // What a handle names is what it has, as long as it is held.
  void Hold(const std::vector<AdapterHandle>& handles) {
    world_.counts_.handles += static_cast<int64_t>(handles.size());
    for (int round = 0; round < 2; ++round) {
      for (const AdapterHandle& handle : handles) {
        if (!handle.empty()) CheckWeights(handle);
      }
      for (int i = Pick(30); i > 0 && round == 0; --i) std::this_thread::yield();
    }
  }

  void CheckWeights(const AdapterHandle& handle) {
    const auto content = world_.content_of_.find(handle->revision());
    if (content == world_.content_of_.end()) return world_.Violation("an unknown revision");
    const size_t modules = size_t{1} << content->second;
    if (handle.manifest().modules.size() != modules) return world_.Violation("other modules");
    const PairFactors factors = handle->Factors(random_() % modules, 0);
    const FakeModule expected = world_.ContentOf(content->second, 1).modules[0];
    const Tensor a = TensorsOf(expected).lora_a;
    const auto is_equal = [](const Tensor& x, const Tensor& y) {
      return std::equal(x.bytes().begin(), x.bytes().end(), y.bytes().begin(), y.bytes().end());
    };
    if (!is_equal(factors.lora_a, a)) world_.Violation("weights of another revision");
  }

  void Get(int name) {
    const int64_t call = world_.Stamp();
    const absl::StatusOr<AdapterSnapshot> seen = world_.registry_->Get(NameOf(name));
    RecordSeen(name, call, world_.Stamp(), "Get", seen.ok() ? &*seen : nullptr);
  }

  void List() {
    const int64_t call = world_.Stamp();
    const ListPage page = world_.registry_->List({});
    const int64_t returned = world_.Stamp();
    for (int name = 0; name < kNames; ++name) {
      const auto seen = std::find_if(page.adapters.begin(), page.adapters.end(),
                                     [&](const auto& one) { return one.name == NameOf(name); });
      RecordSeen(name, call, returned, "List", seen == page.adapters.end() ? nullptr : &*seen);
    }
  }

  void RecordSeen(int name, int64_t call, int64_t returned, const std::string& text,
                  const AdapterSnapshot* seen) {
    if (seen == nullptr) {
      return Record(name, call, returned,
                    Read(text + " nothing", [](const State& state) { return !state.exists; }));
    }
    Record(name, call, returned,
           Read(text + " " + Short(seen->digest.revision),
                [snapshot = *seen](const State& state) { return Shows(state, snapshot); }));
  }

  // For a moment a source or the journal is out of reach.
  void Disturb() {
    if (OneIn(2)) {
      world_.journal_.FailPuts(Error(Reason::kStorageFull, "the disk is full"));
      world_.journal_.FailErases(Error(Reason::kStorageFull, "the disk is full"));
      for (int i = Pick(10); i > 0; --i) std::this_thread::yield();
      world_.journal_.FailPuts(absl::OkStatus());
      world_.journal_.FailErases(absl::OkStatus());
      return;
    }
    const int content = Pick(kContents);
    FakeContent gone = world_.ContentOf(content, 1);
    gone.open_error = Error(Reason::kSourceUnavailable, "the disk is gone");
    world_.sources_.Put(fmt::format("s{}", content), gone);
    for (int i = Pick(10); i > 0; --i) std::this_thread::yield();
    world_.sources_.Put(fmt::format("s{}", content), world_.ContentOf(content, 1));
  }

  World& world_;
  std::mt19937_64 random_;
  const bool one_by_one_;
  bool several_ = false;
};

void World::Run(int steps, bool one_by_one) {
  ++runs_;
  budget_changes_ = runs_ % 2 == 0;
  registry_->SetMemoryBudget(kBudget * unit_);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t, steps, one_by_one] {
      try {
        Worker worker(*this, seed_ * 1'000'003 + runs_ * kThreads + t, one_by_one);
        for (int i = 0; i < steps / kThreads; ++i) worker.Step();
      } catch (const std::exception& exception) {
        Violation(exception.what());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace adapterd::model
