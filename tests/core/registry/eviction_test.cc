// Who goes when room is needed, and who does not.
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class EvictionTest : public RegistryTest {
 protected:
  // A source whose adapter costs at least twice as much as the others.
  LoadRequest Large(const std::string& name) {
    FakeContent content = ContentOf(name);
    content.modules.push_back(content.modules[0]);
    content.modules[1].path = "model.layers.1.self_attn.q_proj";
    sources_.Put(name, content);
    EXPECT_EQ(BytesOf(content), 2 * Unit());
    return Request(name, name);
  }
};
INSTANTIATE_TEST_SUITE_P(Threads, EvictionTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(EvictionTest, WhatIsUnusedLongestGoesFirst) {
  Start(3 * Unit());
  for (const char* name : {"a", "b", "c"}) ASSERT_THAT(LoadOwn(name), IsOk());
  ASSERT_THAT(Acquire({{"a", ""}}), IsOk());
  ASSERT_OK_AND_ASSIGN(const LoadResult d, LoadOwn("d"));
  EXPECT_THAT(d.evicted, ElementsAre("b"));
  ASSERT_OK_AND_ASSIGN(const LoadResult large, Load(Large("large")));
  EXPECT_THAT(large.evicted, ElementsAre("c", "a"));
  EXPECT_THAT(Evictions(), ElementsAre("b", "c", "a"));
  for (const char* name : {"a", "b", "c"}) EXPECT_EQ(StateOf(name), AdapterState::kEvicted);
  for (const char* name : {"d", "large"}) EXPECT_EQ(StateOf(name), AdapterState::kReady);
  EXPECT_EQ(budget_->used(), 3 * Unit());
}

TEST_P(EvictionTest, AnEvictedAdapterIsStillDescribed) {
  Start(Unit());
  ASSERT_OK_AND_ASSIGN(const LoadResult a, LoadOwn("a"));
  ASSERT_THAT(LoadOwn("b"), IsOk());
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot evicted, registry_->Get("a"));
  EXPECT_EQ(evicted.state, AdapterState::kEvicted);
  EXPECT_EQ(evicted.memory_bytes, 0);
  EXPECT_EQ(evicted.manifest, nullptr);
  ASSERT_NE(evicted.description, nullptr);
  EXPECT_EQ(*evicted.description, *a.adapter.description);
  EXPECT_EQ(evicted.digest, a.adapter.digest);
  EXPECT_EQ(evicted.etag, a.adapter.etag);
  EXPECT_EQ(evicted.public_id, a.adapter.public_id);
  EXPECT_EQ(registry_->totals().resident, 1);
}

// One way for "x" to be there and not to be evictable.
struct Staying {
  std::string name;
  std::function<void(LoadRequest&)> request;
  bool is_used = false;
};

TEST_P(EvictionTest, SomeStayThoughTheyAreUnusedLongest) {
  const Staying all[] = {
      {"Pinned", [](LoadRequest& request) { request.pinned = true; }},
      {"NotReloadable", [](LoadRequest& request) { request.reloadable = false; }},
      {"InUse", [](LoadRequest&) {}, true},
  };
  for (const Staying& staying : all) {
    SCOPED_TRACE(staying.name);
    Start(2 * Unit());
    sources_.Put("x", ContentOf("x"));
    LoadRequest request = Request("x", "x");
    staying.request(request);
    ASSERT_THAT(Load(request), IsOk());
    Handles handles;
    if (staying.is_used) {
      ASSERT_OK_AND_ASSIGN(handles, Acquire({{"x", ""}}));
    }
    ASSERT_THAT(LoadOwn("y"), IsOk());
    const LoadRequest large = Large("large");
    const ValidationResult checked = registry_->Validate(large, Cancellation());
    EXPECT_FALSE(checked.fits);
    EXPECT_THAT(checked.would_evict, IsEmpty());
    const absl::StatusOr<LoadResult> refused = Load(large);
    EXPECT_THAT(refused, HasReason(Reason::kMemoryBudgetExceeded));
    const std::string two = std::to_string(2 * Unit());
    EXPECT_THAT(refused, HasErrorMetadata("needed_bytes", two));
    EXPECT_THAT(refused, HasErrorMetadata("used_bytes", two));
    EXPECT_THAT(refused, HasErrorMetadata("budget_bytes", two));
    EXPECT_EQ(StateOf("y"), AdapterState::kReady) << "evicted in vain";
    ASSERT_OK_AND_ASSIGN(const LoadResult z, LoadOwn("z"));
    EXPECT_THAT(z.evicted, ElementsAre("y"));
    EXPECT_EQ(StateOf("x"), AdapterState::kReady);
  }
}

TEST_P(EvictionTest, WhatWasUnpinnedGoes) {
  Start(Unit());
  sources_.Put("x", ContentOf("x"));
  LoadRequest request = Request("x", "x");
  request.pinned = true;
  ASSERT_THAT(Load(request), IsOk());
  ASSERT_THAT(LoadOwn("y"), HasReason(Reason::kMemoryBudgetExceeded));
  UpdateRequest unpin;
  unpin.name = "x";
  unpin.pinned = false;
  ASSERT_THAT(Update(unpin), IsOk());
  ASSERT_OK_AND_ASSIGN(const LoadResult y, LoadOwn("y"));
  EXPECT_THAT(y.evicted, ElementsAre("x"));
}

TEST_P(EvictionTest, ValidateNamesThoseThatALoadEvicts) {
  Start(3 * Unit());
  for (const char* name : {"a", "b", "c"}) ASSERT_THAT(LoadOwn(name), IsOk());
  ASSERT_THAT(Acquire({{"b", ""}}), IsOk());
  const LoadRequest large = Large("large");
  const ValidationResult checked = registry_->Validate(large, Cancellation());
  EXPECT_TRUE(checked.fits);
  EXPECT_THAT(checked.would_evict, ElementsAre("a", "c"));
  EXPECT_EQ(budget_->used(), 3 * Unit());
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(large));
  EXPECT_EQ(result.evicted, checked.would_evict);
}

TEST_P(EvictionTest, AnAdapterThatNeedsItsBaseReadAgainStaysLonger) {
  Start(2 * Unit());
  const absl::Time start = absl::Now();
  sources_.Put("costly", ContentOf("costly"));
  LoadRequest request = Request("costly", "costly");
  request.source.base_checkpoint = "base";
  ASSERT_THAT(Load(request), IsOk());
  ASSERT_THAT(LoadOwn("cheap"), IsOk());
  const absl::Time later = absl::Now();
  SpinUntil([&] { return absl::Now() - later > (absl::Now() - start) / 2; });
  ASSERT_OK_AND_ASSIGN(const LoadResult result, LoadOwn("z"));
  EXPECT_THAT(result.evicted, ElementsAre("cheap"));
}

TEST_P(EvictionTest, AReplaceTakesOthersBeforeItsOwnOldRevision) {
  Start(2 * Unit());
  ASSERT_THAT(LoadOwn("x"), IsOk());
  ASSERT_THAT(LoadOwn("y"), IsOk());
  sources_.Put("x2", ContentOf("x2"));
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Replacing(Request("x", "x2"))));
  EXPECT_THAT(result.evicted, ElementsAre("y"));
}

TEST_P(EvictionTest, AReplaceTakesItsOwnOldRevisionAtLast) {
  Start(Unit());
  ASSERT_THAT(LoadOwn("x"), IsOk());
  sources_.Put("x2", ContentOf("x2"));
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Replacing(Request("x", "x2"))));
  EXPECT_THAT(result.evicted, ElementsAre("x"));
  EXPECT_EQ(result.replaced_revision, RevisionOf("x"));
  EXPECT_EQ(budget_->used(), Unit());
}

// Its source holds what replaced it, so it could not come back.
TEST_P(EvictionTest, AKeptRevisionWhoseSourceHoldsNewerContentStays) {
  options_.keep_revisions = 1;
  Start(3 * Unit());
  sources_.Put("s", ContentOf("1"));
  ASSERT_THAT(Load(Request("x", "s")), IsOk());
  sources_.Put("s", ContentOf("2", 2));
  ASSERT_THAT(Load(Replacing(Request("x", "s"))), IsOk());
  ASSERT_THAT(LoadOwn("y"), IsOk());
  EvictAll();
  EXPECT_EQ(budget_->used(), Unit());
  EXPECT_EQ(StateOf("x"), AdapterState::kEvicted);
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", RevisionOf("1")}}));
  EXPECT_EQ(handles[0]->revision(), RevisionOf("1"));
}

TEST_P(EvictionTest, AfterARollbackItIsStillTheOlderContentThatStays) {
  options_.keep_revisions = 1;
  Start(3 * Unit());
  sources_.Put("s", ContentOf("1"));
  ASSERT_THAT(Load(Request("x", "s")), IsOk());
  sources_.Put("s", ContentOf("2", 2));
  ASSERT_THAT(Load(Replacing(Request("x", "s"))), IsOk());
  ASSERT_THAT(Rollback("x", RevisionOf("1")), IsOk());
  EvictAll();
  EXPECT_EQ(budget_->used(), Unit());
  EXPECT_EQ(StateOf("x"), AdapterState::kReady);
  ASSERT_OK_AND_ASSIGN(const Handles newer, Acquire({{"x", RevisionOf("2")}}));
  EXPECT_EQ(newer[0]->revision(), RevisionOf("2"));
}

TEST_P(EvictionTest, LoadingAnEvictedAdapterAgainChangesNothingButItsMemory) {
  ASSERT_OK_AND_ASSIGN(const LoadResult first, LoadOwn("x"));
  EvictAll();
  ASSERT_EQ(StateOf("x"), AdapterState::kEvicted);
  ASSERT_OK_AND_ASSIGN(const LoadResult again, LoadOwn("x"));
  EXPECT_TRUE(again.already_loaded);
  EXPECT_EQ(again.replaced_revision, "");
  EXPECT_EQ(again.adapter.etag, first.adapter.etag);
  EXPECT_EQ(StateOf("x"), AdapterState::kReady);
}

TEST_P(EvictionTest, AKeptRevisionFromAnotherSourceGoesAndComesBack) {
  options_.keep_revisions = 1;
  Start(2 * Unit());
  ASSERT_THAT(LoadOwn("x"), IsOk());
  sources_.Put("x2", ContentOf("x2"));
  ASSERT_THAT(Load(Replacing(Request("x", "x2"))), IsOk());
  ASSERT_OK_AND_ASSIGN(const LoadResult y, LoadOwn("y"));
  EXPECT_THAT(y.evicted, IsEmpty());              // the adapter itself stays
  EXPECT_EQ(StateOf("x"), AdapterState::kReady);  // the current one
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", RevisionOf("x")}}));
  EXPECT_EQ(handles[0]->revision(), RevisionOf("x"));
}

TEST_P(EvictionTest, UnderPressureTheLongestUnusedGoAndTheBudgetStays) {
  Start(4 * Unit());
  for (const char* name : {"a", "b", "c", "d"}) ASSERT_THAT(LoadOwn(name), IsOk());
  registry_->EvictUnused(Unit() + 1);
  EXPECT_THAT(Evictions(), ElementsAre("a", "b"));
  EXPECT_EQ(budget_->used(), 2 * Unit());
  EXPECT_EQ(registry_->totals().budget_bytes, 4 * Unit());
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"c", ""}}));
  registry_->EvictUnused(100 * Unit());
  EXPECT_THAT(Evictions(), ElementsAre("a", "b", "d"));
}

TEST_P(EvictionTest, ALowerBudgetEvictsDownToItAsFarAsPossible) {
  Start(4 * Unit());
  for (const char* name : {"a", "b", "c", "d"}) ASSERT_THAT(LoadOwn(name), IsOk());
  registry_->SetMemoryBudget(3 * Unit());
  EXPECT_THAT(Evictions(), ElementsAre("a"));
  ASSERT_OK_AND_ASSIGN(Handles handles, Acquire({{"b", ""}, {"c", ""}}));
  registry_->SetMemoryBudget(Unit());
  EXPECT_THAT(Evictions(), ElementsAre("a", "d"));  // though that is not enough
  EXPECT_EQ(budget_->used(), 2 * Unit());
  EXPECT_EQ(registry_->totals().budget_bytes, Unit());
  EXPECT_THAT(LoadOwn("e"), HasReason(Reason::kMemoryBudgetExceeded));
  handles.clear();
  ASSERT_OK_AND_ASSIGN(const LoadResult e, LoadOwn("e"));
  EXPECT_THAT(e.evicted, ElementsAre("b", "c"));
  EXPECT_EQ(budget_->used(), Unit());
}

TEST_P(EvictionTest, AnAdapterThatWasJustLoadedMayGoBeforeItsFileIsDigested) {
  Start(Unit());
  FakeSource& a = sources_.Put("a", ContentOf("a"));
  a.weights_sha_gate.Close();
  Started load = StartLoad(Request("a", "a"));
  a.weights_sha_gate.AwaitVisitor();
  registry_->SetMemoryBudget(0);
  EXPECT_EQ(budget_->used(), 0);
  a.weights_sha_gate.Open();
  ASSERT_OK_AND_ASSIGN(const LoadResult result, load.pending.Wait());
  EXPECT_EQ(result.adapter.state, AdapterState::kEvicted);
  EXPECT_EQ(result.adapter.digest, DigestOf(ContentOf("a")));
}

TEST_P(EvictionTest, AFormForAnotherDtypeMakesRoomForItself) {
  FakeContent content = ContentOf("x");
  content.modules[0].dtype = DType::kBF16;
  sources_.Put("x", content);
  Start(kRoomy);
  ASSERT_THAT(Load(Request("x", "x")), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles handles, Acquire({{"x", ""}}));
  ASSERT_THAT(LoadOwn("y"), IsOk());
  registry_->SetMemoryBudget(budget_->used());
  ASSERT_THAT(handles[0]->Pair(0, 0, DType::kF32), IsOk());
  EXPECT_LE(budget_->used(), budget_->limit());
  const bool packed_another = handles[0]->memory_bytes() > BytesOf(content);
  EXPECT_EQ(StateOf("y"), packed_another ? AdapterState::kEvicted : AdapterState::kReady);
}

}  // namespace
}  // namespace adapterd
