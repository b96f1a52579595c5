// Equal content under two names is in memory once.
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

class SharedContentTest : public RegistryTest {
 protected:
  // "x" and "y" with equal content from two sources.
  void LoadBoth() {
    sources_.Put("one", ContentOf("same"));
    sources_.Put("two", ContentOf("same", 2));
    ASSERT_THAT(Load(Request("x", "one")), IsOk());
    ASSERT_THAT(Load(Request("y", "two")), IsOk());
  }
};
INSTANTIATE_TEST_SUITE_P(Threads, SharedContentTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(SharedContentTest, ItsBytesCountOnce) {
  LoadBoth();
  EXPECT_EQ(budget_->used(), Unit());
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", ""}, {"y", ""}}));
  EXPECT_EQ(&*handles[0], &*handles[1]);
  for (const char* name : {"x", "y"}) {
    EXPECT_EQ(StateOf(name), AdapterState::kReady);
    EXPECT_EQ(registry_->Get(name)->in_flight, 1);
  }
}

TEST_P(SharedContentTest, ContentThatIsUnderstoodInAnotherWayIsNotShared) {
  FakeContent content = ContentOf("same");
  sources_.Put("one", content);
  content.understood_as = "other";
  sources_.Put("two", content);
  ASSERT_THAT(Load(Request("x", "one")), IsOk());
  ASSERT_THAT(Load(Request("y", "two")), IsOk());
  EXPECT_EQ(budget_->used(), 2 * Unit());
}

TEST_P(SharedContentTest, TheLastUnloadFreesIt) {
  LoadBoth();
  ASSERT_OK_AND_ASSIGN(const UnloadResult first, Unload(UnloadOf("x")));
  EXPECT_EQ(first.freed_bytes, 0);
  EXPECT_TRUE(first.freed);
  EXPECT_EQ(budget_->used(), Unit());
  EXPECT_THAT(Acquire({{"y", ""}}), IsOk());
  ASSERT_OK_AND_ASSIGN(const UnloadResult last, Unload(UnloadOf("y")));
  EXPECT_EQ(last.freed_bytes, Unit());
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(SharedContentTest, EvictionTakesItFromBoth) {
  Start(Unit() * 2);
  LoadBoth();
  ASSERT_THAT(LoadOwn("z"), IsOk());
  ASSERT_THAT(Acquire({{"y", ""}}), IsOk());  // a use of one is a use of both
  ASSERT_OK_AND_ASSIGN(const LoadResult w, LoadOwn("w"));
  EXPECT_THAT(w.evicted, ElementsAre("z"));
  ASSERT_OK_AND_ASSIGN(const LoadResult v, LoadOwn("v"));
  EXPECT_THAT(v.evicted, UnorderedElementsAre("x", "y"));
  for (const char* name : {"x", "y"}) EXPECT_EQ(StateOf(name), AdapterState::kEvicted);
  EXPECT_EQ(registry_->totals().resident, 2);
}

TEST_P(SharedContentTest, ItStaysWhileOneNameIsPinned) {
  Start(2 * Unit());  // a load reads its own copy before it can share
  LoadBoth();
  registry_->SetMemoryBudget(Unit());
  UpdateRequest pin;
  pin.name = "x";
  pin.pinned = true;
  ASSERT_THAT(Update(pin), IsOk());
  EXPECT_THAT(LoadOwn("z"), HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_EQ(StateOf("y"), AdapterState::kReady);
}

TEST_P(SharedContentTest, WhatOneNameBringsBackServesTheOtherWithoutAnotherRead) {
  Start(2 * Unit());
  LoadBoth();
  EvictAll();
  registry_->SetMemoryBudget(Unit());
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", ""}, {"y", ""}}));
  EXPECT_EQ(&*handles[0], &*handles[1]);
  EXPECT_EQ(sources_["one"].reads + sources_["two"].reads, 3);
  EXPECT_EQ(budget_->used(), Unit());
  EXPECT_FALSE(registry_->totals().thrashing);
}

// Names of tensors and of the base model are each source's own.
TEST_P(SharedContentTest, EachNameComesBackWithItsOwnManifest) {
  Start(2 * Unit());
  sources_.Put("one", ContentOf("same"));
  ASSERT_THAT(Load(Request("x", "one")), IsOk());
  LoadRequest other = Request("y", "one");
  other.source.base_model = "another";
  ASSERT_THAT(Load(other), IsOk());
  EvictAll();
  ASSERT_OK_AND_ASSIGN(const Handles x, Acquire({{"x", ""}}));
  ASSERT_OK_AND_ASSIGN(const Handles y, Acquire({{"y", ""}}));
  EXPECT_EQ(x[0].manifest().base_model, "base");
  EXPECT_EQ(y[0].manifest().base_model, "another");
  EXPECT_EQ(&*x[0], &*y[0]);
}

TEST_P(SharedContentTest, ASourceThatChangedFailsThoughAnotherNameHasTheContent) {
  Start(2 * Unit());
  LoadBoth();
  EvictAll();
  sources_.Put("two", ContentOf("other", 3));
  ASSERT_THAT(Acquire({{"x", ""}}), IsOk());
  EXPECT_THAT(Acquire({{"y", ""}}), HasReason(Reason::kAdapterFailed));
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
}

}  // namespace
}  // namespace adapterd
