// Requests for several adapters of which some are evicted.
#include <thread>

#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;

class GatherTest : public RegistryTest {
 protected:
  // Names a to d, all evicted, with room for `units` of them.
  void StartWith(int units) {
    Start(4 * Unit());
    for (const char* name : {"a", "b", "c", "d"}) ASSERT_THAT(LoadOwn(name), IsOk());
    registry_->SetMemoryBudget(0);
    registry_->SetMemoryBudget(units * Unit());
  }
};
INSTANTIATE_TEST_SUITE_P(Threads, GatherTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(GatherTest, AllComeBack) {
  StartWith(3);
  ASSERT_OK_AND_ASSIGN(const Handles handles,
                       Acquire({{"c", ""}, {"a", ""}, {"c", ""}, {"b", ""}}));
  ASSERT_EQ(handles.size(), 4u);
  EXPECT_EQ(handles[0]->revision(), RevisionOf("c"));
  EXPECT_EQ(handles[1]->revision(), RevisionOf("a"));
  EXPECT_EQ(&*handles[2], &*handles[0]);
  EXPECT_EQ(handles[3]->revision(), RevisionOf("b"));
  EXPECT_EQ(budget_->used(), 3 * Unit());
  for (const char* name : {"a", "b", "c"}) EXPECT_EQ(sources_[name].reads, 2);
}

TEST_P(GatherTest, TwoThatNeedMoreThanHalfTheBudgetEachDoNotBlockEachOther) {
  StartWith(3);  // "a" and "b" and "c" fit, all four do not
  constexpr int kRounds = 50;
  const auto work = [&](std::vector<AdapterRef> refs) {
    for (int i = 0; i < kRounds; ++i) {
      const absl::StatusOr<Handles> handles = Acquire(refs);
      ASSERT_THAT(handles.status(), IsOk());
      for (size_t k = 0; k < refs.size(); ++k) {
        EXPECT_EQ((*handles)[k]->revision(), RevisionOf(refs[k].name));
      }
      EXPECT_LE(budget_->used(), budget_->limit());
    }
  };
  std::thread first(work, std::vector<AdapterRef>{{"a", ""}, {"b", ""}});
  std::thread second(work, std::vector<AdapterRef>{{"c", ""}, {"d", ""}});
  std::thread third(work, std::vector<AdapterRef>{{"d", ""}, {"a", ""}, {"b", ""}});
  first.join();
  second.join();
  third.join();
  EXPECT_EQ(registry_->Get("a")->in_flight, 0);
}

// If each of two held one of its adapters, neither would ever get the other one.
TEST_P(GatherTest, TheSecondInLineHoldsNothing) {
  StartWith(2);
  for (const char* name : {"b", "d"}) sources_[name].open_gate.Close();
  StartedAcquire first = StartAcquire({{"a", ""}, {"b", ""}});
  StartedAcquire second = StartAcquire({{"c", ""}, {"d", ""}});
  sources_["b"].open_gate.AwaitVisitor();
  if (GetParam() > 1) SpinUntil([&] { return sources_["a"].reads == 2; });
  for (const char* name : {"c", "d"}) EXPECT_EQ(sources_[name].opens, 1);
  for (const char* name : {"b", "d"}) sources_[name].open_gate.Open();
  ASSERT_OK_AND_ASSIGN(Handles handles, first.pending.Wait());
  EXPECT_FALSE(second.pending.answered());
  handles.clear();
  EXPECT_THAT(second.pending.Wait(), IsOk());
}

TEST_P(GatherTest, WhatIsTogetherOverTheBudgetIsRefusedAtOnce) {
  StartWith(2);
  ASSERT_THAT(Acquire({{"a", ""}}), IsOk());
  const absl::StatusOr<Handles> refused = Acquire({{"a", ""}, {"b", ""}, {"c", ""}});
  EXPECT_THAT(refused, HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_THAT(refused, HasErrorMetadata("needed_bytes", std::to_string(3 * Unit())));
  EXPECT_THAT(refused, HasErrorMetadata("used_bytes", std::to_string(Unit())));
  EXPECT_THAT(refused, HasErrorMetadata("budget_bytes", std::to_string(2 * Unit())));
  EXPECT_EQ(sources_["b"].opens, 1);
  EXPECT_EQ(StateOf("a"), AdapterState::kReady);
}

TEST_P(GatherTest, PinnedMemoryCountsAgainstThem) {
  StartWith(3);
  UpdateRequest pin;
  pin.name = "a";
  pin.pinned = true;
  ASSERT_THAT(Update(pin), IsOk());
  ASSERT_THAT(Acquire({{"a", ""}}), IsOk());
  EXPECT_THAT(Acquire({{"b", ""}, {"c", ""}}), IsOk());
  EXPECT_THAT(Acquire({{"b", ""}, {"c", ""}, {"d", ""}}), HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_THAT(Acquire({{"a", ""}, {"b", ""}, {"d", ""}}), IsOk());  // its own does not
}

// It holds one, and pinned memory in the way of the other will never be free.
TEST_P(GatherTest, PinningWhileItGathersIsNoticed) {
  StartWith(2);
  ASSERT_THAT(Acquire({{"c", ""}}), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles c, Acquire({{"c", ""}}));
  StartedAcquire waiting = StartAcquire({{"a", ""}, {"b", ""}});
  SpinUntil([&] { return budget_->used() == 2 * Unit(); });  // it has one of them
  EXPECT_FALSE(waiting.pending.answered());
  UpdateRequest pin;
  pin.name = "c";
  pin.pinned = true;
  ASSERT_THAT(Update(pin), IsOk());
  c.clear();
  const absl::StatusOr<Handles> refused = waiting.pending.Wait();
  EXPECT_THAT(refused, HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_THAT(refused, HasErrorMetadata("needed_bytes", std::to_string(2 * Unit())));
  EXPECT_THAT(refused, HasMessage(HasSubstr("belong to what stays in memory")));
  EXPECT_THAT(Acquire({{"a", ""}}), IsOk());
}

// What its refs mean may change while it waits for the rest: it must not wait for memory that it
// holds itself.
TEST_P(GatherTest, WhatItDoesNotWantAnyMoreIsLetGo) {
  options_.keep_revisions = 1;
  Start(5 * Unit());
  for (const char* name : {"a", "b", "c", "d"}) ASSERT_THAT(LoadOwn(name), IsOk());
  sources_.Put("a2", ContentOf("a2"));
  ASSERT_THAT(Load(Replacing(Request("a", "a2"))), IsOk());
  ASSERT_THAT(SetAlias("a", "live", RevisionOf("a")), IsOk());
  EvictAll();
  registry_->SetMemoryBudget(3 * Unit());
  ASSERT_OK_AND_ASSIGN(Handles c, Acquire({{"c", ""}}));
  ASSERT_OK_AND_ASSIGN(const Handles d, Acquire({{"d", ""}}));
  StartedAcquire waiting = StartAcquire({{"a", "", "live"}, {"b", ""}});
  SpinUntil([&] { return budget_->used() == 3 * Unit(); });  // it has one of them
  ASSERT_THAT(SetAlias("a", "live", RevisionOf("a2")), IsOk());
  c.clear();
  ASSERT_OK_AND_ASSIGN(const Handles handles, waiting.pending.Wait());
  EXPECT_EQ(handles[0]->revision(), RevisionOf("a2"));
  EXPECT_EQ(handles[1]->revision(), RevisionOf("b"));
}

TEST_P(GatherTest, OneCancelLetsTheNextInLineGoOn) {
  StartWith(2);
  sources_["a"].read_gate.Close();
  StartedAcquire first = StartAcquire({{"a", ""}, {"b", ""}});
  sources_["a"].read_gate.AwaitVisitor();
  StartedAcquire second = StartAcquire({{"c", ""}, {"d", ""}});
  EXPECT_FALSE(second.pending.answered());
  registry_->Cancel(first.ticket);
  EXPECT_THAT(first.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  sources_["a"].read_gate.Open();
  ASSERT_OK_AND_ASSIGN(const Handles handles, second.pending.Wait());
  EXPECT_EQ(handles[1]->revision(), RevisionOf("d"));
}

TEST_P(GatherTest, OneThatFailsLetsTheNextInLineGoOn) {
  StartWith(2);
  sources_.Put("b", ContentOf("other", 2));
  StartedAcquire first = StartAcquire({{"a", ""}, {"b", ""}});
  StartedAcquire second = StartAcquire({{"c", ""}, {"d", ""}});
  EXPECT_THAT(first.pending.Wait(), HasReason(Reason::kAdapterFailed));
  EXPECT_THAT(second.pending.Wait(), IsOk());
}

TEST_P(GatherTest, TheDestructorAnswersAllInLine) {
  StartWith(2);
  sources_["a"].read_gate.Close();
  std::vector<StartedAcquire> waiting;
  for (int i = 0; i < 5; ++i) waiting.push_back(StartAcquire({{"a", ""}, {"b", ""}}));
  sources_["a"].read_gate.AwaitVisitor();
  sources_["a"].read_gate.Open();
  registry_.reset();
  for (StartedAcquire& one : waiting) {
    EXPECT_TRUE(one.pending.answered());
    one.pending.Wait().IgnoreError();
  }
  waiting.clear();
  EXPECT_EQ(budget_->used(), 0);
}

}  // namespace
}  // namespace adapterd
