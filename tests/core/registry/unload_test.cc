// Unloading: the name goes at once, the answer comes when the memory is free.
#include <thread>

#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::IsEmpty;

class UnloadTest : public RegistryTest {
 protected:
  UnloadTest() { sources_.Put("a", content_); }

  FakeContent content_;
};
INSTANTIATE_TEST_SUITE_P(Threads, UnloadTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(UnloadTest, AnUnusedAdapterIsFreedAtOnce) {
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_OK_AND_ASSIGN(const UnloadResult result, Unload(UnloadOf("x")));
  EXPECT_EQ(result.freed_bytes, BytesOf(content_));
  EXPECT_TRUE(result.freed);
  EXPECT_EQ(budget_->used(), 0);
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_THAT(Unload(UnloadOf("x")), HasReason(Reason::kAdapterNotFound));
}

TEST_P(UnloadTest, TheAnswerWaitsForTheLastHandle) {
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles first, Acquire({{"x", ""}}));
  ASSERT_OK_AND_ASSIGN(Handles second, Acquire({{"x", ""}}));
  StartedUnload unload = StartUnload(UnloadOf("x"));
  SpinUntil([&] { return Names().empty(); });
  EXPECT_THAT(registry_->Get("x"), HasReason(Reason::kAdapterNotFound));
  EXPECT_THAT(Acquire({{"x", ""}}), HasReason(Reason::kAdapterNotFound));
  EXPECT_EQ(budget_->used(), BytesOf(content_));
  first.clear();
  EXPECT_FALSE(unload.pending.answered());
  EXPECT_EQ(second[0]->revision(), DigestOf(content_).revision);
  second.clear();
  ASSERT_OK_AND_ASSIGN(const UnloadResult result, unload.pending.Wait());
  EXPECT_EQ(result.freed_bytes, BytesOf(content_));
  EXPECT_TRUE(result.freed);
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(UnloadTest, TheBytesAreFreeBeforeTheAnswer) {
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles handles, Acquire({{"x", ""}}));
  Pending<int64_t> used;
  registry_->Unload(UnloadOf("x"),
                    [&, answer = used.Callback()](absl::StatusOr<UnloadResult>) mutable {
                      answer(budget_->used());
                    });
  handles.clear();
  EXPECT_EQ(used.Wait().value(), 0);
}

TEST_P(UnloadTest, TheAnswerMayUseTheRegistry) {
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles handles, Acquire({{"x", ""}}));
  Pending<bool> empty;
  registry_->Unload(UnloadOf("x"),
                    [&, answer = empty.Callback()](absl::StatusOr<UnloadResult>) mutable {
                      answer(registry_->List({}).adapters.empty());
                    });
  handles.clear();
  EXPECT_TRUE(empty.Wait().value());
}

TEST_P(UnloadTest, DrainingRevisionsAreWaitedForToo) {
  FakeContent two;
  two.text = "2";
  sources_.Put("two", two);
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles old, Acquire({{"x", ""}}));
  ASSERT_THAT(Load(Replacing(Request("x", "two"))), IsOk());
  StartedUnload unload = StartUnload(UnloadOf("x"));
  SpinUntil([&] { return Names().empty() && budget_->used() == BytesOf(content_); });
  EXPECT_FALSE(unload.pending.answered());
  old.clear();
  ASSERT_OK_AND_ASSIGN(const UnloadResult result, unload.pending.Wait());
  EXPECT_EQ(result.freed_bytes, BytesOf(content_) + BytesOf(two));
}

TEST_P(UnloadTest, WithoutWaitingItAnswersWhatIsFreeSoFar) {
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles handles, Acquire({{"x", ""}}));
  UnloadRequest request = UnloadOf("x");
  request.wait = false;
  ASSERT_OK_AND_ASSIGN(const UnloadResult busy, Unload(request));
  EXPECT_EQ(busy.freed_bytes, 0);
  EXPECT_FALSE(busy.freed);
  EXPECT_THAT(Names(), IsEmpty());
  handles.clear();
  EXPECT_EQ(budget_->used(), 0);

  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_OK_AND_ASSIGN(const UnloadResult idle, Unload(request));
  EXPECT_EQ(idle.freed_bytes, BytesOf(content_));
  EXPECT_TRUE(idle.freed);
}

TEST_P(UnloadTest, ANameCanBeLoadedAgainWhileItsOldAdapterDrains) {
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles handles, Acquire({{"x", ""}}));
  StartedUnload unload = StartUnload(UnloadOf("x"));
  ASSERT_OK_AND_ASSIGN(const LoadResult again, Load(Request("x")));
  EXPECT_EQ(again.adapter.use_count, 0);
  EXPECT_EQ(budget_->used(), 2 * BytesOf(content_));
  handles.clear();
  ASSERT_OK_AND_ASSIGN(const UnloadResult result, unload.pending.Wait());
  EXPECT_EQ(result.freed_bytes, BytesOf(content_));
  EXPECT_EQ(budget_->used(), BytesOf(content_));
}

TEST_P(UnloadTest, APinnedAdapterNeedsForce) {
  LoadRequest request = Request("x");
  request.pinned = true;
  ASSERT_THAT(Load(request), IsOk());
  const absl::StatusOr<UnloadResult> refused = Unload(UnloadOf("x"));
  EXPECT_THAT(refused, HasReason(Reason::kAdapterPinned));
  EXPECT_THAT(refused.status(), HasErrorMetadata("adapter", "x"));
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
  UnloadRequest forced = UnloadOf("x");
  forced.force = true;
  EXPECT_THAT(Unload(forced), IsOk());
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(UnloadTest, AnotherRevisionIsNotUnloaded) {
  ASSERT_THAT(Load(Request("x")), IsOk());
  const absl::StatusOr<UnloadResult> refused = Unload(UnloadOf("x", "another"));
  EXPECT_THAT(refused, HasReason(Reason::kRevisionMismatch));
  EXPECT_THAT(refused.status(), HasErrorMetadata("expected", "another"));
  EXPECT_THAT(refused.status(), HasErrorMetadata("actual", DigestOf(content_).revision));
  EXPECT_EQ(budget_->used(), BytesOf(content_));
  EXPECT_THAT(Unload(UnloadOf("x", DigestOf(content_).revision)), IsOk());
}

TEST_P(UnloadTest, AnUnknownNameIsNotFound) {
  const absl::StatusOr<UnloadResult> refused = Unload(UnloadOf("x"));
  EXPECT_THAT(refused, HasReason(Reason::kAdapterNotFound));
  EXPECT_THAT(refused.status(), HasErrorMetadata("adapter", "x"));
}

TEST_P(UnloadTest, ItWaitsForALoadThatIsRunning) {
  FakeSource& source = sources_["a"];
  source.read_gate.Close();
  Started load = StartLoad(Request("x"));
  source.read_gate.AwaitVisitor();
  StartedUnload unload = StartUnload(UnloadOf("x"));
  EXPECT_FALSE(unload.pending.answered());
  source.read_gate.Open();
  EXPECT_THAT(load.pending.Wait(), IsOk());
  ASSERT_OK_AND_ASSIGN(const UnloadResult result, unload.pending.Wait());
  EXPECT_EQ(result.freed_bytes, BytesOf(content_));
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(UnloadTest, ItFindsNothingWhenTheRunningLoadFails) {
  content_.read_error = Error(Reason::kNonFiniteWeights, "NaN");
  FakeSource& source = sources_.Put("a", content_);
  source.read_gate.Close();
  Started load = StartLoad(Request("x"));
  source.read_gate.AwaitVisitor();
  StartedUnload unload = StartUnload(UnloadOf("x"));
  source.read_gate.Open();
  EXPECT_THAT(load.pending.Wait(), HasReason(Reason::kNonFiniteWeights));
  EXPECT_THAT(unload.pending.Wait(), HasReason(Reason::kAdapterNotFound));
}

TEST_P(UnloadTest, TheLastHandleMayGoOnAnyThread) {
  ASSERT_THAT(Load(Request("x")), IsOk());
  std::vector<Handles> all;
  for (int i = 0; i < 16; ++i) {
    ASSERT_OK_AND_ASSIGN(Handles handles, Acquire({{"x", ""}}));
    all.push_back(std::move(handles));
  }
  StartedUnload unload = StartUnload(UnloadOf("x"));
  std::vector<std::thread> threads;
  for (Handles& handles : all) {
    threads.emplace_back([&handles] { handles.clear(); });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_OK_AND_ASSIGN(const UnloadResult result, unload.pending.Wait());
  EXPECT_EQ(result.freed_bytes, BytesOf(content_));
  EXPECT_EQ(budget_->used(), 0);
}

}  // namespace
}  // namespace adapterd
