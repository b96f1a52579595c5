// The registry against its model: what many threads do at once must look as if it had been done one
// after the other, and every byte and every weight must be right.
//
// ADAPTERD_MODEL_STEPS: operations in all (default 10,000). ADAPTERD_MODEL_SEED: of a failure that
// is looked into; it decides what the threads do, though not how they interleave.
#include "tests/core/registry/model.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <cstdlib>

#include "tests/core/registry/model_world.h"
#include "tests/testing/status_matchers.h"

namespace adapterd::model {
namespace {

using ::testing::IsEmpty;

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoll(value, nullptr, 10);
}

// The last operations before it became clear that no order explains them.
std::string Tail(const std::vector<Operation>& history, size_t unexplained) {
  constexpr size_t kShown = 40;
  std::string text;
  const int64_t until = history[unexplained].returned;
  std::vector<const Operation*> before;
  for (const Operation& operation : history) {
    if (operation.call < until) before.push_back(&operation);
  }
  const size_t first = before.size() > kShown ? before.size() - kShown : 0;
  for (size_t i = first; i < before.size(); ++i) {
    text += fmt::format("{:>8} {:>8} {}{}\n", before[i]->call, before[i]->returned, before[i]->text,
                        before[i] == &history[unexplained] ? "   <== unexplained" : "");
  }
  return text;
}

TEST(RegistryModelTest, WhatThreadsSeeIsWhatOneAfterTheOtherWouldSee) {
  constexpr int kStepsOfARun = 1000;
  const int64_t steps = FromEnvironment("ADAPTERD_MODEL_STEPS", 10'000);
  const auto seed = static_cast<uint64_t>(FromEnvironment("ADAPTERD_MODEL_SEED", 1));
  World world(seed);
  std::set<State> states[World::kNames];
  for (auto& initial : states) initial = {State()};
  for (int64_t run = 0; run * kStepsOfARun < steps; ++run) {
    SCOPED_TRACE(fmt::format("ADAPTERD_MODEL_SEED={}, run {}", seed, run));
    world.Run(kStepsOfARun, run / 2 % 2 == 1);
    ASSERT_THAT(world.violations(), IsEmpty());
    for (int name = 0; name < World::kNames; ++name) {
      const std::vector<Operation> history = world.TakeHistory(name);
      size_t unexplained = 0;
      states[name] = Checker(history).Run(states[name], unexplained);
      ASSERT_FALSE(states[name].empty()) << "name " << name << ":\n" << Tail(history, unexplained);
    }
    ASSERT_EQ(world.WhatIsWrongNow(), "");
    if (run % 4 == 3) world.Restart();
  }
  // It has been somewhere.
  EXPECT_GT(world.counts().loads, steps / 50);
  EXPECT_GT(world.counts().handles, steps / 20);
  EXPECT_GT(world.counts().evictions, steps / 100);
  EXPECT_GT(world.counts().restorations, steps / 100);
  EXPECT_GT(world.counts().refused_for_memory, 0);
  EXPECT_GT(world.counts().cancelled, 0);
  world.UnloadAll();
  EXPECT_EQ(world.WhatIsWrongNow(), "");
}

// The checker itself: a register that is written and read.
Operation Write(int64_t call, int64_t returned, const std::string& value) {
  Operation write{call, returned, "write " + value};
  write.step = [value](State& state) {
    state.revision = value;
    return true;
  };
  return write;
}

Operation ReadOf(int64_t call, int64_t returned, const std::string& value) {
  Operation read{call, returned, "read " + value, true};
  read.step = [value](State& state) { return state.revision == value; };
  return read;
}

Operation GivenUp(Operation operation) {
  operation.is_optional = true;
  return operation;
}

struct History {
  std::string name;
  std::vector<Operation> operations;
  std::set<std::string> after;  // values; none: it cannot be explained
};

TEST(CheckerTest, OnlyWhatSomeOrderExplainsIsAccepted) {
  const History all[] = {
      {"Nothing", {}, {""}},
      {"OneAfterTheOther", {Write(1, 2, "a"), ReadOf(3, 4, "a")}, {"a"}},
      {"ALostWrite", {Write(1, 2, "a"), ReadOf(3, 4, "")}, {}},
      {"AReadOfTheFuture", {ReadOf(1, 2, "a"), Write(3, 4, "a")}, {}},
      {"AReadMeanwhileOfTheOld", {Write(1, 4, "a"), ReadOf(2, 3, "")}, {"a"}},
      {"AReadMeanwhileOfTheNew", {Write(1, 4, "a"), ReadOf(2, 3, "a")}, {"a"}},
      {"NewThenOldMeanwhile", {Write(1, 6, "a"), ReadOf(2, 3, "a"), ReadOf(4, 5, "")}, {}},
      {"TwoOrdersOfTwoWrites", {Write(1, 4, "a"), Write(2, 3, "b")}, {"a", "b"}},
      {"AReadDecidesTheOrder", {Write(1, 4, "a"), Write(2, 3, "b"), ReadOf(5, 6, "a")}, {"a"}},
      {"ReadsThatDisagreeOnTheOrder",
       {Write(1, 4, "a"), Write(2, 3, "b"), ReadOf(5, 6, "a"), ReadOf(7, 8, "b")},
       {}},
      {"GivenUpAndDone", {GivenUp(Write(1, 2, "a")), ReadOf(3, 4, "a")}, {"a"}},
      {"GivenUpAndNotDone", {GivenUp(Write(1, 2, "a")), ReadOf(3, 4, "")}, {""}},
      {"GivenUpAndDoneLate", {GivenUp(Write(1, 2, "a")), ReadOf(3, 4, ""), ReadOf(5, 6, "a")}, {}},
      {"AReadBetweenTwoWrites",
       {Write(1, 8, "a"), Write(2, 7, "b"), ReadOf(3, 4, "b"), ReadOf(5, 6, "a")},
       {"a"}},
  };
  for (const History& history : all) {
    size_t unexplained = 0;
    std::set<std::string> after;
    for (const State& state : Checker(history.operations).Run({State()}, unexplained)) {
      after.insert(state.revision);
    }
    EXPECT_EQ(after, history.after) << history.name;
  }
}

}  // namespace
}  // namespace adapterd::model
