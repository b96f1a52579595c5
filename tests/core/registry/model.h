// What one adapter name should do, one operation after the other, and whether a history of
// operations that overlapped can be explained by it.
#ifndef ADAPTERD_TESTS_CORE_REGISTRY_MODEL_H_
#define ADAPTERD_TESTS_CORE_REGISTRY_MODEL_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/registry/registry_types.h"

namespace adapterd::model {

// A name as clients see it. Whether its weights are in memory is not part of it: evictions may
// happen at any time and must not show.
struct State {
  bool exists = false;
  std::string revision;
  bool pinned = false;
  bool enabled = true;
  Labels labels;
  Aliases aliases;
  std::vector<std::string> kept;  // newest first
  std::string etag;               // empty: not known

  auto operator<=>(const State&) const = default;

  bool Has(const std::string& wanted) const {
    return wanted == revision || std::find(kept.begin(), kept.end(), wanted) != kept.end();
  }
  void DropUnkept(size_t keep) {
    size_t place = 0;
    std::erase_if(kept, [&](const std::string& old) {
      const bool is_aliased = std::any_of(aliases.begin(), aliases.end(),
                                          [&](const auto& alias) { return alias.second == old; });
      return place++ >= keep && !is_aliased;
    });
  }
  void MakeCurrent(const std::string& next, size_t keep) {
    std::erase(kept, next);
    if (exists && revision != next) kept.insert(kept.begin(), revision);
    revision = next;
    DropUnkept(keep);
  }
};

// Whether `seen` is `state`; LOADING for the first time is not there yet.
inline bool Shows(const State& state, const AdapterSnapshot& seen) {
  if (seen.state == AdapterState::kLoading) return !state.exists;
  return state.exists && seen.state != AdapterState::kFailed &&
         seen.digest.revision == state.revision && seen.pinned == state.pinned &&
         seen.enabled == state.enabled && seen.labels == state.labels &&
         seen.aliases == state.aliases && seen.kept_revisions == state.kept &&
         (state.etag.empty() || state.etag == seen.etag);
}

// What `ref` gets of an enabled adapter: a revision, or an error.
struct Resolved {
  std::optional<Reason> error;
  std::string revision;
};

inline Resolved Resolve(const State& state, const AdapterRef& ref) {
  if (!state.exists) return {Reason::kAdapterNotFound, ""};
  std::string wanted = ref.revision;
  if (!ref.alias.empty()) {
    const auto alias = state.aliases.find(ref.alias);
    if (alias == state.aliases.end()) return {Reason::kAdapterNotFound, ""};
    if (!wanted.empty() && wanted != alias->second) return {Reason::kRevisionMismatch, ""};
    wanted = alias->second;
  }
  if (wanted.empty()) wanted = state.revision;
  if (!state.Has(wanted)) return {Reason::kRevisionMismatch, ""};
  return {std::nullopt, wanted};
}

// One operation on one name, as it was observed.
struct Operation {
  int64_t call = 0;      // stamps: two operations overlap unless one returned before the other's
  int64_t returned = 0;  // call
  std::string text;      // for people
  bool is_read = false;
  bool is_optional = false;  // its caller gave up: it may or may not have happened
  // Does it to a state; false when it could not have had its result there.
  std::function<bool(State&)> step = nullptr;
};

// The states that may have come out when `history` began in one of `before`; none when no order of
// its operations, each at one instant between its call and its return, explains what was seen. Then
// `unexplained` is the place of the operation that returned when that became clear. `history` is
// sorted by call.
//
// Goes through calls and returns in order of time and keeps every (state, operations that have
// happened already but not returned) that is possible. A read that fits happens at once: it
// changes nothing for the others.
class Checker {
 public:
  explicit Checker(const std::vector<Operation>& history) : history_(history) {}

  std::set<State> Run(const std::set<State>& before, size_t& unexplained) {
    configurations_.clear();
    for (const State& state : before) configurations_.insert({state, {}});
    std::vector<std::pair<int64_t, size_t>> returns;
    for (size_t i = 0; i < history_.size(); ++i) returns.emplace_back(history_[i].returned, i);
    std::sort(returns.begin(), returns.end());
    size_t called = 0;
    for (const auto& [stamp, op] : returns) {
      for (; called < history_.size() && history_[called].call < stamp; ++called) {
        in_flight_.push_back(called);
      }
      Return(op);
      std::erase(in_flight_, op);
      if (!configurations_.empty()) continue;
      unexplained = op;
      return {};
    }
    std::set<State> after;
    for (const auto& [state, happened] : configurations_) after.insert(state);
    return after;
  }

 private:
  using Configuration = std::pair<State, std::set<size_t>>;

  void Return(size_t op) {
    std::set<Configuration> seen;
    std::set<Configuration> next;
    for (const Configuration& configuration : configurations_) {
      Explore(configuration, op, seen, next);
    }
    configurations_ = std::move(next);
  }

  void Explore(Configuration at, size_t op, std::set<Configuration>& seen,
               std::set<Configuration>& next) const {
    for (const size_t other : in_flight_) {
      if (!history_[other].is_read || at.second.count(other) > 0) continue;
      State state = at.first;
      if (history_[other].step(state)) at.second.insert(other);
    }
    if (!seen.insert(at).second) return;
    if (at.second.count(op) > 0 || history_[op].is_optional) {
      Configuration done = at;
      done.second.erase(op);
      next.insert(std::move(done));
      if (at.second.count(op) > 0) return;  // more may happen later, too
    }
    for (const size_t other : in_flight_) {
      if (history_[other].is_read || at.second.count(other) > 0) continue;
      Configuration then = at;
      if (!history_[other].step(then.first)) continue;
      then.second.insert(other);
      Explore(std::move(then), op, seen, next);
    }
  }

  const std::vector<Operation>& history_;
  std::vector<size_t> in_flight_;
  std::set<Configuration> configurations_;
};

}  // namespace adapterd::model

#endif  // ADAPTERD_TESTS_CORE_REGISTRY_MODEL_H_
