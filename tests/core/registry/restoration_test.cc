// Evicted adapters: how they come back, and what happens when they cannot.
#include <new>
#include <thread>

#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class RestorationTest : public RegistryTest {
 protected:
  // "x", evicted from a budget of two adapters.
  RestorationTest() {
    Start(2 * Unit());
    EXPECT_THAT(LoadOwn("x"), IsOk());
    EvictAll();
    EXPECT_EQ(StateOf("x"), AdapterState::kEvicted);
  }

  void ChangeX(const FakeContent& content) { sources_.Put("x", content); }
  FakeSource& x() { return sources_["x"]; }
};
INSTANTIATE_TEST_SUITE_P(Threads, RestorationTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(RestorationTest, AUseBringsItBack) {
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot before, registry_->Get("x"));
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", ""}}));
  EXPECT_EQ(handles[0]->revision(), RevisionOf("x"));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, registry_->Get("x"));
  EXPECT_EQ(after.state, AdapterState::kReady);
  EXPECT_EQ(after.etag, before.etag);
  EXPECT_EQ(after.load_time, before.load_time);
  EXPECT_EQ(after.memory_bytes, Unit());
  ASSERT_NE(after.manifest, nullptr);
  EXPECT_EQ(x().reads, 2);
  EXPECT_EQ(budget_->used(), Unit());
  const LoadEvent event = Events().back();
  EXPECT_EQ(event.name, "x");
  EXPECT_TRUE(event.restored);
  EXPECT_TRUE(event.read);
  EXPECT_THAT(event.status, IsOk());
}

TEST_P(RestorationTest, ItsManifestIsReadWithoutBringingItBack) {
  ASSERT_OK_AND_ASSIGN(const auto manifest,
                       registry_->ReadManifest("x", RevisionOf("x"), Cancellation()));
  ASSERT_NE(manifest, nullptr);
  EXPECT_FALSE(manifest->modules.empty());
  EXPECT_EQ(x().reads, 1);  // by the load
  EXPECT_EQ(StateOf("x"), AdapterState::kEvicted);
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(RestorationTest, AManifestIsThatOfTheRevisionAskedForOrNone) {
  EXPECT_THAT(registry_->ReadManifest("y", RevisionOf("x"), Cancellation()),
              HasReason(Reason::kAdapterNotFound));
  EXPECT_THAT(
      registry_->ReadManifest("x", std::string(64, '0'), Cancellation()),
      ::testing::AllOf(HasReason(Reason::kRevisionMismatch), HasErrorMetadata("adapter", "x")));
  ChangeX(ContentOf("other", 2));
  EXPECT_THAT(
      registry_->ReadManifest("x", RevisionOf("x"), Cancellation()),
      ::testing::AllOf(HasReason(Reason::kAdapterFailed), HasErrorMetadata("adapter", "x")));
  EXPECT_EQ(StateOf("x"), AdapterState::kEvicted);  // whoever uses it finds out
}

TEST_P(RestorationTest, ManyWaitersShareOneRead) {
  x().read_gate.Close();
  std::vector<StartedAcquire> waiting;
  for (int i = 0; i < 16; ++i) waiting.push_back(StartAcquire({{"x", ""}}));
  x().read_gate.AwaitVisitor();
  for (const StartedAcquire& one : waiting) EXPECT_FALSE(one.pending.answered());
  x().read_gate.Open();
  for (StartedAcquire& one : waiting) ASSERT_THAT(one.pending.Wait(), IsOk());
  EXPECT_EQ(x().reads, 2);
}

TEST_P(RestorationTest, TheLastWaitersCancelDropsIt) {
  x().read_gate.Close();
  StartedAcquire first = StartAcquire({{"x", ""}});
  StartedAcquire second = StartAcquire({{"x", ""}});
  x().read_gate.AwaitVisitor();
  registry_->Cancel(first.ticket);
  EXPECT_THAT(first.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_FALSE(second.pending.answered());
  registry_->Cancel(second.ticket);
  EXPECT_THAT(second.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  x().read_gate.Open();
  SpinUntil([&] { return budget_->used() == 0; });
  EXPECT_EQ(StateOf("x"), AdapterState::kEvicted);
}

TEST_P(RestorationTest, WhoeverComesAfterTheLastOneHasLeftGetsItAllTheSame) {
  x().read_gate.Close();
  StartedAcquire dropped = StartAcquire({{"x", ""}});
  x().read_gate.AwaitVisitor();
  registry_->Cancel(dropped.ticket);
  StartedAcquire late = StartAcquire({{"x", ""}});
  EXPECT_FALSE(late.pending.answered());
  x().read_gate.Open();
  ASSERT_OK_AND_ASSIGN(const Handles handles, late.pending.Wait());
  EXPECT_EQ(handles[0]->revision(), RevisionOf("x"));
  EXPECT_EQ(x().reads, 3);
}

struct Change {
  std::string name;
  FakeContent content;
};

std::vector<Change> Changes() {
  std::vector<Change> all(4);
  all[0].name = "OtherBytes";
  all[0].content.text = "other";
  all[1].name = "OtherShape";
  all[1].content.text = "other";
  all[1].content.modules[0].rank = 3;
  all[2].name = "LargerThanTheBudget";
  all[2].content.text = "other";
  all[2].content.modules[0].in_features = 1 << 20;
  all[3].name = "UnderstoodInAnotherWay";
  all[3].content.text = "x";
  all[3].content.understood_as = "other";
  for (Change& change : all) change.content.changed_ns = 2;
  return all;
}

TEST_P(RestorationTest, OtherContentIsNeverServed) {
  for (const Change& change : Changes()) {
    SCOPED_TRACE(change.name);
    ChangeX(ContentOf("x"));
    ASSERT_THAT(Load(Replacing(Request("x", "x"))), IsOk());
    ASSERT_THAT(LoadOwn("y"), IsOk());
    EvictAll();
    ChangeX(change.content);
    const absl::StatusOr<Handles> refused = Acquire({{"x", ""}});
    EXPECT_THAT(refused, HasReason(Reason::kAdapterFailed));
    EXPECT_THAT(refused, HasErrorMetadata("adapter", "x"));
    EXPECT_THAT(refused, HasMessage(HasSubstr("other content")));
    ASSERT_OK_AND_ASSIGN(const AdapterSnapshot failed, registry_->Get("x"));
    EXPECT_EQ(failed.state, AdapterState::kFailed);
    EXPECT_THAT(failed.error, HasReason(Reason::kSourceChanged));
    EXPECT_EQ(failed.digest.revision, RevisionOf("x"));
    EXPECT_EQ(budget_->used(), 0);
    // It is not tried again and again.
    const int reads = x().reads + x().digests;
    EXPECT_THAT(Acquire({{"x", ""}}), HasReason(Reason::kAdapterFailed));
    EXPECT_EQ(x().reads + x().digests, reads);
    // Whoever asks for several is told the same.
    EXPECT_THAT(Acquire({{"y", ""}, {"x", ""}}), HasReason(Reason::kAdapterFailed));
  }
}

TEST_P(RestorationTest, StoredContentThatChangedIsCorrupt) {
  sources_.Put("", ContentOf("stored"));
  LoadRequest request = Request("s", "");
  request.source.stored = "key";
  ASSERT_THAT(Load(request), IsOk());
  EvictAll();
  sources_.Put("", ContentOf("damaged", 2));
  EXPECT_THAT(Acquire({{"s", ""}}), HasReason(Reason::kAdapterFailed));
  EXPECT_THAT(registry_->Get("s")->error, HasReason(Reason::kStoreCorrupt));
}

TEST_P(RestorationTest, AFailedAdapterIsHealedByALoadOfItsContent) {
  ChangeX(ContentOf("other", 2));
  ASSERT_THAT(Acquire({{"x", ""}}), HasReason(Reason::kAdapterFailed));
  EXPECT_THAT(Load(Request("x", "x")), HasReason(Reason::kAdapterExists));
  EXPECT_EQ(StateOf("x"), AdapterState::kFailed);
  ChangeX(ContentOf("x", 3));
  ASSERT_OK_AND_ASSIGN(const LoadResult healed, Load(Request("x", "x")));
  EXPECT_EQ(healed.adapter.state, AdapterState::kReady);
  EXPECT_TRUE(healed.already_loaded);
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
}

TEST_P(RestorationTest, AFailedAdapterIsHealedByAReplace) {
  ChangeX(ContentOf("other", 2));
  ASSERT_THAT(Acquire({{"x", ""}}), HasReason(Reason::kAdapterFailed));
  ASSERT_OK_AND_ASSIGN(const LoadResult replaced, Load(Replacing(Request("x", "x"))));
  EXPECT_EQ(replaced.adapter.state, AdapterState::kReady);
  EXPECT_EQ(replaced.replaced_revision, RevisionOf("x"));
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", ""}}));
  EXPECT_EQ(handles[0]->revision(), RevisionOf("other"));
}

struct Trouble {
  std::string name;
  Reason reason;
  std::function<void(FakeContent&)> arrange;
};

std::vector<Trouble> Troubles() {
  return {
      {"Unreachable", Reason::kSourceUnavailable,
       [](FakeContent& content) {
         content.open_error = Error(Reason::kSourceUnavailable, "the disk is gone");
       }},
      {"UnreachableHalfWay", Reason::kSourceUnavailable,
       [](FakeContent& content) {
         content.read_error = Error(Reason::kSourceUnavailable, "the disk is gone");
       }},
      {"NoMemory", Reason::kMemoryBudgetExceeded,
       [](FakeContent& content) {
         content.while_read = [](const Cancellation&) { throw std::bad_alloc(); };
       }},
  };
}

TEST_P(RestorationTest, TroubleThatPassesLeavesItEvicted) {
  for (const Trouble& trouble : Troubles()) {
    SCOPED_TRACE(trouble.name);
    FakeContent content = ContentOf("x");
    trouble.arrange(content);
    ChangeX(content);
    EXPECT_THAT(Acquire({{"x", ""}}), HasReason(trouble.reason));
    EXPECT_EQ(StateOf("x"), AdapterState::kEvicted);
    EXPECT_EQ(budget_->used(), 0);
    ChangeX(ContentOf("x"));
    EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
    EvictAll();
  }
}

TEST_P(RestorationTest, AFileThatMovesWhileItIsReadIsReadAgain) {
  FakeContent content = ContentOf("x");
  auto reads = std::make_shared<std::atomic<int>>(0);
  content.while_read = [reads, this](const Cancellation&) {
    if (++*reads == 1) ChangeX(ContentOf("x"));  // sound from the next opening on
  };
  content.read_error = Error(Reason::kSourceChanged, "the file changed while it was read");
  ChangeX(content);
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
  EXPECT_EQ(*reads, 1);
}

TEST_P(RestorationTest, ItWaitsForMemoryThatIsInUse) {
  ASSERT_THAT(LoadOwn("a"), IsOk());
  ASSERT_THAT(LoadOwn("b"), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles a, Acquire({{"a", ""}}));
  ASSERT_OK_AND_ASSIGN(Handles b, Acquire({{"b", ""}}));
  StartedAcquire waiting = StartAcquire({{"x", ""}});
  SpinUntil([&] { return x().opens == 2; });
  EXPECT_FALSE(waiting.pending.answered());
  b.clear();
  ASSERT_OK_AND_ASSIGN(const Handles handles, waiting.pending.Wait());
  EXPECT_EQ(handles[0]->revision(), RevisionOf("x"));
  EXPECT_EQ(StateOf("a"), AdapterState::kReady);
  EXPECT_EQ(StateOf("b"), AdapterState::kEvicted);
}

TEST_P(RestorationTest, ItGoesOnWhenTheBudgetGrows) {
  ASSERT_THAT(LoadOwn("a"), IsOk());
  ASSERT_THAT(LoadOwn("b"), IsOk());
  ASSERT_OK_AND_ASSIGN(const Handles held, Acquire({{"a", ""}, {"b", ""}}));
  StartedAcquire waiting = StartAcquire({{"x", ""}});
  registry_->SetMemoryBudget(3 * Unit());
  EXPECT_THAT(waiting.pending.Wait(), IsOk());
}

TEST_P(RestorationTest, ItGoesOnWhenALoadThatTookTheMemoryHasEnded) {
  ASSERT_THAT(LoadOwn("a"), IsOk());
  ASSERT_OK_AND_ASSIGN(const Handles a, Acquire({{"a", ""}}));
  FakeSource& b = sources_.Put("b", ContentOf("b"));
  b.read_gate.Close();
  Started load = StartLoad(Request("b", "b"));
  b.read_gate.AwaitVisitor();
  StartedAcquire waiting = StartAcquire({{"x", ""}});
  if (GetParam() > 1) SpinUntil([&] { return x().opens == 2; });
  b.read_gate.Open();
  EXPECT_THAT(load.pending.Wait(), IsOk());
  EXPECT_THAT(waiting.pending.Wait(), IsOk());  // "b" is idle, so it goes
}

TEST_P(RestorationTest, WaitingForMemoryCanBeGivenUp) {
  ASSERT_THAT(LoadOwn("a"), IsOk());
  ASSERT_THAT(LoadOwn("b"), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles held, Acquire({{"a", ""}, {"b", ""}}));
  StartedAcquire waiting = StartAcquire({{"x", ""}});
  SpinUntil([&] { return x().opens == 2; });
  registry_->Cancel(waiting.ticket);
  EXPECT_THAT(waiting.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  held.clear();
  EXPECT_EQ(StateOf("x"), AdapterState::kEvicted);
}

TEST_P(RestorationTest, WhoWaitsForMemoryIsToldThatTheNameIsGone) {
  ASSERT_THAT(LoadOwn("a"), IsOk());
  ASSERT_THAT(LoadOwn("b"), IsOk());
  ASSERT_OK_AND_ASSIGN(const Handles held, Acquire({{"a", ""}, {"b", ""}}));
  StartedAcquire waiting = StartAcquire({{"x", ""}});
  ASSERT_OK_AND_ASSIGN(const UnloadResult unloaded, Unload(UnloadOf("x")));
  EXPECT_TRUE(unloaded.freed);
  EXPECT_EQ(unloaded.freed_bytes, 0);
  EXPECT_THAT(waiting.pending.Wait(), HasReason(Reason::kAdapterNotFound));
}

TEST_P(RestorationTest, AnUnloadEndsARestorationAndWaitsForItsMemory) {
  FakeContent content = ContentOf("x");
  content.while_read = [](const Cancellation& cancellation) {
    SpinUntil([&] { return cancellation.IsCancelled(); });
  };
  ChangeX(content);
  x().read_gate.Close();
  StartedAcquire waiting = StartAcquire({{"x", ""}});
  x().read_gate.AwaitVisitor();
  EXPECT_EQ(budget_->used(), Unit());
  Pending<int64_t> used;
  registry_->Unload(UnloadOf("x"),
                    [&, answer = used.Callback()](absl::StatusOr<UnloadResult>) mutable {
                      answer(budget_->used());
                    });
  SpinUntil([&] { return Names().empty(); });
  x().read_gate.Open();
  EXPECT_EQ(used.Wait().value(), 0);
  EXPECT_THAT(waiting.pending.Wait(), HasReason(Reason::kAdapterNotFound));
}

TEST_P(RestorationTest, AReplaceMeanwhileIsWhatTheWaiterGets) {
  x().read_gate.Close();
  StartedAcquire waiting = StartAcquire({{"x", ""}});
  x().read_gate.AwaitVisitor();
  sources_.Put("x2", ContentOf("x2"));
  Started load = StartLoad(Replacing(Request("x", "x2")));
  if (GetParam() > 1) {
    EXPECT_THAT(load.pending.Wait(), IsOk());
  }
  x().read_gate.Open();
  if (GetParam() == 1) {
    EXPECT_THAT(load.pending.Wait(), IsOk());
  }
  ASSERT_OK_AND_ASSIGN(const Handles handles, waiting.pending.Wait());
  EXPECT_EQ(handles[0]->revision(), RevisionOf(GetParam() > 1 ? "x2" : "x"));
}

TEST_P(RestorationTest, WhatCannotFitIsRefusedAtOnce) {
  sources_.Put("p", ContentOf("p"));
  LoadRequest pinned = Request("p", "p");
  pinned.pinned = true;
  ASSERT_THAT(Load(pinned), IsOk());
  registry_->SetMemoryBudget(2 * Unit() - 1);
  const absl::StatusOr<Handles> beside_pinned = Acquire({{"x", ""}});
  EXPECT_THAT(beside_pinned, HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_THAT(beside_pinned, HasErrorMetadata("needed_bytes", std::to_string(Unit())));
  EXPECT_THAT(beside_pinned, HasErrorMetadata("used_bytes", std::to_string(Unit())));
  EXPECT_THAT(beside_pinned, HasErrorMetadata("budget_bytes", std::to_string(2 * Unit() - 1)));
  EXPECT_THAT(beside_pinned, HasMessage(HasSubstr("belong to what stays in memory")));
  EXPECT_EQ(x().opens, 1);
  EXPECT_EQ(StateOf("x"), AdapterState::kEvicted);
  registry_->SetMemoryBudget(2 * Unit());
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
}

TEST_P(RestorationTest, WaitingEndsWhenTheMemoryWillNeverBeEnough) {
  ASSERT_THAT(LoadOwn("a"), IsOk());
  ASSERT_THAT(LoadOwn("b"), IsOk());
  ASSERT_OK_AND_ASSIGN(const Handles held, Acquire({{"a", ""}, {"b", ""}}));
  StartedAcquire waiting = StartAcquire({{"x", ""}});
  SpinUntil([&] { return x().opens == 2; });
  registry_->SetMemoryBudget(Unit() - 1);
  EXPECT_THAT(waiting.pending.Wait(), HasReason(Reason::kMemoryBudgetExceeded));
}

TEST_P(RestorationTest, TheDestructorEndsAllOfThem) {
  FakeContent content = ContentOf("x");
  content.while_read = [](const Cancellation& cancellation) {
    SpinUntil([&] { return cancellation.IsCancelled(); });
  };
  ChangeX(content);
  StartedAcquire reading = StartAcquire({{"x", ""}});
  registry_.reset();
  EXPECT_THAT(reading.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(RestorationTest, TheDestructorAnswersThoseThatWaitForMemory) {
  ASSERT_THAT(LoadOwn("a"), IsOk());
  ASSERT_THAT(LoadOwn("b"), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles held, Acquire({{"a", ""}, {"b", ""}}));
  StartedAcquire waiting = StartAcquire({{"x", ""}});
  SpinUntil([&] { return x().opens == 2; });
  registry_.reset();
  EXPECT_THAT(waiting.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  held.clear();
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(RestorationTest, EvictedContentLoadedAgainIsThereAlready) {
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Request("x", "x")));
  EXPECT_TRUE(result.already_loaded);
  EXPECT_EQ(result.adapter.state, AdapterState::kReady);
  EXPECT_EQ(x().reads, 2);
}

TEST_P(RestorationTest, ComingBackOverAndOverIsThrashing) {
  std::atomic<int> alarms{0};
  options_.on_thrash = [&] { ++alarms; };
  Start(2 * Unit());
  for (const char* name : {"a", "b", "c"}) ASSERT_THAT(LoadOwn(name), IsOk());
  for (const char* name : {"a", "b"}) {  // as much as the budget holds
    ASSERT_THAT(Acquire({{name, ""}}), IsOk());
    EXPECT_FALSE(registry_->totals().thrashing);
  }
  EXPECT_EQ(alarms, 0);
  for (const char* name : {"c", "a"}) ASSERT_THAT(Acquire({{name, ""}}), IsOk());
  EXPECT_TRUE(registry_->totals().thrashing);
  SpinUntil([&] { return alarms == 1; });  // once, when it begins
}

TEST(ThrashGuardTest, OldRestorationsDoNotCount) {
  const absl::Time start = absl::UnixEpoch();
  ThrashGuard guard;
  EXPECT_FALSE(guard.Thrashes(start, 0));
  guard.Restored(start, 10);
  guard.Restored(start + absl::Seconds(20), 5);
  EXPECT_FALSE(guard.Thrashes(start + absl::Seconds(20), 15));
  EXPECT_TRUE(guard.Thrashes(start + absl::Seconds(20), 14));
  EXPECT_TRUE(guard.Thrashes(start + ThrashGuard::kWindow, 14));
  EXPECT_FALSE(guard.Thrashes(start + ThrashGuard::kWindow + absl::Seconds(1), 5));
  EXPECT_TRUE(guard.Thrashes(start + ThrashGuard::kWindow + absl::Seconds(1), 4));
}

}  // namespace
}  // namespace adapterd
