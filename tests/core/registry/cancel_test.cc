// Callers that go away, and a registry that does.
#include <thread>

#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class CancelTest : public RegistryTest {
 protected:
  CancelTest() : source_(sources_.Put("a", content_)) {}

  // A load of "x" that stands before the read gate.
  Started BlockedLoad() {
    source_.read_gate.Close();
    Started started = StartLoad(Request("x"));
    source_.read_gate.AwaitVisitor();
    return started;
  }

  FakeContent content_;
  FakeSource& source_;
};
INSTANTIATE_TEST_SUITE_P(Threads, CancelTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(CancelTest, TheCallerIsAnsweredAtOnce) {
  Started started = BlockedLoad();
  registry_->Cancel(started.ticket);
  EXPECT_THAT(started.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  registry_->Cancel(started.ticket);  // and once
}

TEST_P(CancelTest, OneCallersCancelDoesNotFailTheOthers) {
  Started first = BlockedLoad();
  Started second = StartLoad(Request("x"));
  registry_->Cancel(first.ticket);
  EXPECT_THAT(first.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_FALSE(second.pending.answered());
  source_.read_gate.Open();
  EXPECT_THAT(second.pending.Wait(), IsOk());
  EXPECT_EQ(source_.reads, 1);
}

TEST_P(CancelTest, ALoadThatNobodyWaitsForIsDropped) {
  Started first = BlockedLoad();
  Started second = StartLoad(Request("x"));
  registry_->Cancel(first.ticket);
  registry_->Cancel(second.ticket);
  EXPECT_THAT(second.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  // What comes next waits for the dropped load to end, and finds nothing.
  StartedAcquire acquire = StartAcquire({{"x", ""}});
  source_.read_gate.Open();
  EXPECT_THAT(acquire.pending.Wait(), HasReason(Reason::kAdapterNotFound));
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_EQ(budget_->used(), 0);
  ASSERT_EQ(Events().size(), 1u);
  EXPECT_THAT(Events()[0].status, StatusIs(absl::StatusCode::kCancelled));
}

TEST_P(CancelTest, ALaterLoadOfTheNameReadsAgain) {
  Started dropped = BlockedLoad();
  registry_->Cancel(dropped.ticket);
  Started again = StartLoad(Request("x"));
  EXPECT_FALSE(again.pending.answered());
  source_.read_gate.Open();
  ASSERT_OK_AND_ASSIGN(const LoadResult result, again.pending.Wait());
  EXPECT_FALSE(result.already_loaded);
  EXPECT_EQ(source_.reads, 2);
  EXPECT_EQ(budget_->used(), BytesOf(content_));
}

TEST_P(CancelTest, AnAcquireThatWaitsKeepsTheLoadAlive) {
  Started load = BlockedLoad();
  StartedAcquire acquire = StartAcquire({{"x", ""}});
  registry_->Cancel(load.ticket);
  source_.read_gate.Open();
  EXPECT_THAT(acquire.pending.Wait(), IsOk());
  EXPECT_THAT(Names(), ElementsAre("x"));
}

TEST_P(CancelTest, ACallerThatWaitsForAnotherLoadCanGiveUp) {
  Started load = BlockedLoad();
  LoadRequest pinned = Request("x");
  pinned.pinned = true;
  Started other = StartLoad(pinned);
  StartedUnload unload = StartUnload(UnloadOf("x"));
  registry_->Cancel(other.ticket);
  registry_->Cancel(unload.ticket);
  EXPECT_THAT(other.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(unload.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  source_.read_gate.Open();
  EXPECT_THAT(load.pending.Wait(), IsOk());
  EXPECT_FALSE(registry_->Get("x")->pinned);
}

TEST_P(CancelTest, CancelAfterTheAnswerChangesNothing) {
  Started started = StartLoad(Request("x"));
  ASSERT_THAT(started.pending.Wait(), IsOk());
  registry_->Cancel(started.ticket);
  EXPECT_THAT(Names(), ElementsAre("x"));
  EXPECT_EQ(budget_->used(), BytesOf(content_));
}

TEST_P(CancelTest, AnUnloadWhoseNameIsGoneStillFreesTheMemory) {
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles handles, Acquire({{"x", ""}}));
  StartedUnload unload = StartUnload(UnloadOf("x"));
  registry_->Cancel(unload.ticket);
  EXPECT_FALSE(unload.pending.answered());
  handles.clear();
  ASSERT_OK_AND_ASSIGN(const UnloadResult result, unload.pending.Wait());
  EXPECT_TRUE(result.freed);
}

void SpinUntilCancelled(const Cancellation& cancellation) {
  while (!cancellation.IsCancelled()) std::this_thread::yield();
}

TEST_P(CancelTest, TheDestructorCancelsRunningLoadsAndWaitsForThem) {
  content_.while_read = SpinUntilCancelled;
  sources_.Put("a", content_);
  Started load = StartLoad(Request("x"));
  registry_.reset();
  EXPECT_TRUE(load.pending.answered());
  EXPECT_THAT(load.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(CancelTest, TheDestructorStartsNothingForThoseThatWaited) {
  content_.while_read = SpinUntilCancelled;
  sources_.Put("a", content_);
  FakeSource& b = sources_.Put("b");
  Started load = BlockedLoad();
  Started other = StartLoad(Request("x", "b"));
  StartedAcquire acquire = StartAcquire({{"x", ""}});
  StartedUnload unload = StartUnload(UnloadOf("x"));
  source_.read_gate.Open();
  registry_.reset();
  EXPECT_THAT(load.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(other.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_FALSE(acquire.pending.Wait().ok());
  EXPECT_FALSE(unload.pending.Wait().ok());
  EXPECT_EQ(b.opens, 0);
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(CancelTest, HandlesOutliveTheRegistry) {
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles handles, Acquire({{"x", ""}}));
  registry_.reset();
  EXPECT_EQ(handles[0]->revision(), DigestOf(content_).revision);
  EXPECT_EQ(budget_->used(), BytesOf(content_));
  handles.clear();
  EXPECT_EQ(budget_->used(), 0);
}

}  // namespace
}  // namespace adapterd
