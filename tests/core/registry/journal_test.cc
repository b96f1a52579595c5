// What is written down before it is acknowledged, and what comes of it after a restart.
#include "tests/core/registry/fake_journal.h"
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

class JournalTest : public RegistryTest {
 protected:
  JournalTest() {
    options_.journal = &journal_;
    options_.keep_revisions = 1;
    Start(kRoomy);
  }
  ~JournalTest() override { registry_.reset(); }

  AdapterRecord Written(const std::string& name) const { return journal_.records().at(name); }

  // A new process that finds the journal.
  void Restart(int64_t budget = kRoomy) {
    Start(budget);
    registry_->Restore(journal_.all());
  }

  static UpdateRequest Disabling(const std::string& name) {
    UpdateRequest request;
    request.name = name;
    request.enabled = false;
    return request;
  }

  FakeJournal journal_;
};
INSTANTIATE_TEST_SUITE_P(Threads, JournalTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(JournalTest, EveryChangeIsWrittenDownAsItWasAcknowledged) {
  sources_.Put("x", ContentOf("x"));
  LoadRequest request = Request("x", "x");
  request.labels = {{"team", "red"}};
  request.pinned = true;
  ASSERT_OK_AND_ASSIGN(const LoadResult loaded, Load(request));
  AdapterRecord record = Written("x");
  EXPECT_EQ(record.name, "x");
  EXPECT_EQ(record.public_id, "base:x");
  EXPECT_EQ(record.etag, loaded.adapter.etag);
  EXPECT_EQ(record.labels, request.labels);
  EXPECT_TRUE(record.pinned);
  EXPECT_TRUE(record.enabled);
  EXPECT_EQ(record.current.revision, RevisionOf("x"));
  EXPECT_EQ(record.current.weights_sha256, DigestOf(ContentOf("x")).weights_sha256);
  EXPECT_EQ(record.current.source, request.source);
  EXPECT_EQ(record.current.description, *loaded.adapter.description);
  EXPECT_EQ(record.current.memory_bytes, Unit());
  EXPECT_EQ(record.current.load_time, *loaded.adapter.load_time);
  EXPECT_THAT(record.kept, IsEmpty());

  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot updated, Update(Disabling("x")));
  EXPECT_FALSE(Written("x").enabled);
  EXPECT_EQ(Written("x").etag, updated.etag);
  ASSERT_THAT(SetAlias("x", "old", RevisionOf("x")), IsOk());
  EXPECT_THAT(Written("x").aliases, ElementsAre(Pair("old", RevisionOf("x"))));
  sources_.Put("x2", ContentOf("x2"));
  ASSERT_THAT(Load(Replacing(Request("x", "x2"))), IsOk());
  EXPECT_EQ(Written("x").current.revision, RevisionOf("x2"));
  ASSERT_EQ(Written("x").kept.size(), 1u);
  EXPECT_EQ(Written("x").kept[0], record.current);
  ASSERT_THAT(Rollback("x", RevisionOf("x")), IsOk());
  EXPECT_EQ(Written("x").current, record.current);
  EXPECT_EQ(Written("x").kept[0].revision, RevisionOf("x2"));
  ASSERT_THAT(Unload(UnloadOf("x")), IsOk());
  EXPECT_THAT(journal_.records(), IsEmpty());
}

TEST_P(JournalTest, WhatChangesNothingIsNotWritten) {
  ASSERT_THAT(LoadOwn("x"), IsOk());
  const int puts = journal_.puts();
  ASSERT_THAT(LoadOwn("x"), IsOk());
  UpdateRequest nothing;
  nothing.name = "x";
  ASSERT_THAT(Update(nothing), IsOk());
  ASSERT_THAT(Rollback("x", RevisionOf("x")), IsOk());
  EXPECT_THAT(Load(Request("y", "nowhere")), HasReason(Reason::kSourceNotFound));
  EvictAll();
  ASSERT_THAT(Acquire({{"x", ""}}), IsOk());
  EXPECT_EQ(journal_.puts(), puts);
  EXPECT_EQ(journal_.erases(), 0);
}

TEST_P(JournalTest, NothingIsSeenBeforeItIsWritten) {
  journal_.put_gate.Close();
  sources_.Put("x", ContentOf("x"));
  Started load = StartLoad(Request("x", "x"));
  journal_.put_gate.AwaitVisitor();
  EXPECT_EQ(StateOf("x"), AdapterState::kLoading);
  EXPECT_FALSE(load.pending.answered());
  journal_.put_gate.Open();
  ASSERT_THAT(load.pending.Wait(), IsOk());
  journal_.put_gate.Close();
  Pending<AdapterSnapshot> update;
  registry_->Update(Disabling("x"), update.Callback());
  journal_.put_gate.AwaitVisitor();
  EXPECT_TRUE(registry_->Get("x")->enabled);
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
  journal_.put_gate.Open();
  ASSERT_THAT(update.Wait(), IsOk());
}

TEST_P(JournalTest, AChangeThatCannotBeWrittenDoesNotHappen) {
  FakeContent content = ContentOf("x");
  sources_.Put("x", content);
  content.text = "x2";
  content.base_model = "another";
  sources_.Put("x2", content);
  Start(kRoomy, "{base}");
  ASSERT_THAT(Load(Request("x", "x")), IsOk());
  ASSERT_THAT(LoadOwn("y"), HasReason(Reason::kAdapterExists));  // the public id
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot before, registry_->Get("x"));
  const AdapterRecord written = Written("x");
  const int64_t sequence = registry_->events().last_sequence();
  journal_.FailPuts(Error(Reason::kStorageFull, "the disk is full"));
  EXPECT_THAT(Load(Request("z", "x2")), HasReason(Reason::kStorageFull));
  EXPECT_THAT(Load(Replacing(Request("x", "x2"))), HasReason(Reason::kStorageFull));
  LoadRequest pinned = Replacing(Request("x", "x"));
  pinned.pinned = true;
  EXPECT_THAT(Load(pinned), HasReason(Reason::kStorageFull));
  EXPECT_THAT(Update(Disabling("x")), HasReason(Reason::kStorageFull));
  EXPECT_THAT(SetAlias("x", "a", RevisionOf("x")), HasReason(Reason::kStorageFull));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, registry_->Get("x"));
  EXPECT_EQ(after.etag, before.etag);
  EXPECT_EQ(after.digest, before.digest);
  EXPECT_EQ(after.public_id, "base");
  EXPECT_FALSE(after.pinned);
  EXPECT_TRUE(after.enabled);
  EXPECT_THAT(after.aliases, IsEmpty());
  EXPECT_EQ(registry_->events().last_sequence(), sequence);
  EXPECT_EQ(budget_->used(), Unit());
  EXPECT_THAT(Names(), ElementsAre("x"));
  EXPECT_EQ(Written("x"), written);
  journal_.FailPuts(absl::OkStatus());
  EXPECT_THAT(Load(Request("z", "x2")), IsOk());  // the public id is free
}

TEST_P(JournalTest, ARollbackThatCannotBeWrittenDoesNotHappen) {
  Start(kRoomy, "{base}");
  FakeContent content = ContentOf("x");
  sources_.Put("x", content);
  content.text = "x2";
  content.base_model = "another";
  sources_.Put("x2", content);
  ASSERT_THAT(Load(Request("x", "x")), IsOk());
  ASSERT_THAT(Load(Replacing(Request("x", "x2"))), IsOk());
  journal_.FailPuts(Error(Reason::kStorageFull, "the disk is full"));
  EXPECT_THAT(Rollback("x", RevisionOf("x")), HasReason(Reason::kStorageFull));
  EXPECT_EQ(registry_->Get("x")->public_id, "another");
  EXPECT_EQ(registry_->Get("x")->digest.revision, RevisionOf("x2"));
  EXPECT_EQ(registry_->Get("x")->in_flight, 0);
  journal_.FailPuts(absl::OkStatus());
  EXPECT_THAT(Load(Request("y", "x")), IsOk());
}

TEST_P(JournalTest, AnUnloadThatCannotBeWrittenDoesNotHappen) {
  ASSERT_THAT(LoadOwn("x"), IsOk());
  journal_.FailErases(Error(Reason::kSourceUnavailable, "the disk is gone"));
  EXPECT_THAT(Unload(UnloadOf("x")), HasReason(Reason::kSourceUnavailable));
  EXPECT_EQ(StateOf("x"), AdapterState::kReady);
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
  EXPECT_EQ(budget_->used(), Unit());
  journal_.FailErases(absl::OkStatus());
  EXPECT_THAT(Unload(UnloadOf("x")), IsOk());
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(JournalTest, WhatAFolderBroughtIsNotWritten) {
  sources_.Put("x", ContentOf("x"));
  LoadRequest request = Request("x", "x");
  request.owner = AdapterOwner::kFolder;
  journal_.FailErases(Error(Reason::kSourceUnavailable, "the disk is gone"));
  ASSERT_THAT(Load(request), IsOk());
  ASSERT_THAT(Update(Disabling("x")), IsOk());
  ASSERT_THAT(Unload(UnloadOf("x")), IsOk());
  EXPECT_EQ(journal_.puts() + journal_.erases(), 0);
}

TEST_P(JournalTest, WhatCannotBeReadAgainIsNotWritten) {
  ASSERT_THAT(LoadOwn("x"), IsOk());
  sources_.Put("x2", ContentOf("x2"));
  LoadRequest request = Replacing(Request("x", "x2"));
  request.reloadable = false;
  ASSERT_THAT(Load(request), IsOk());
  EXPECT_THAT(journal_.records(), IsEmpty());
  sources_.Put("x3", ContentOf("x3"));
  ASSERT_THAT(Load(Replacing(Request("x", "x3"))), IsOk());
  EXPECT_EQ(Written("x").current.revision, RevisionOf("x3"));
  EXPECT_THAT(Written("x").kept, IsEmpty());
}

TEST_P(JournalTest, AfterARestartAdaptersAreEvictedUntilTheyAreUsed) {
  ASSERT_THAT(LoadOwn("x"), IsOk());
  sources_.Put("x2", ContentOf("x2"));
  ASSERT_THAT(Load(Replacing(Request("x", "x2"))), IsOk());
  ASSERT_THAT(SetAlias("x", "old", RevisionOf("x")), IsOk());
  ASSERT_THAT(LoadOwn("y"), IsOk());
  ASSERT_THAT(Update(Disabling("y")), IsOk());
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot before, registry_->Get("x"));
  const int opens = sources_["x"].opens + sources_["x2"].opens;
  Restart();
  EXPECT_EQ(sources_["x"].opens + sources_["x2"].opens, opens);
  EXPECT_EQ(budget_->used(), 0);
  EXPECT_EQ(registry_->totals().adapters, 2);
  EXPECT_EQ(registry_->totals().resident, 0);
  EXPECT_EQ(registry_->totals().parameters, 2 * before.description->parameter_count);
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, registry_->Get("x"));
  EXPECT_EQ(after.state, AdapterState::kEvicted);
  EXPECT_EQ(after.etag, before.etag);
  EXPECT_EQ(after.public_id, before.public_id);
  EXPECT_EQ(after.digest, before.digest);
  EXPECT_EQ(after.aliases, before.aliases);
  EXPECT_EQ(after.kept_revisions, before.kept_revisions);
  EXPECT_EQ(after.load_time, before.load_time);
  EXPECT_EQ(*after.description, *before.description);
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", ""}, {"x", "", "old"}}));
  EXPECT_EQ(handles[0]->revision(), RevisionOf("x2"));
  EXPECT_EQ(handles[1]->revision(), RevisionOf("x"));
  EXPECT_THAT(Acquire({{"y", ""}}), HasReason(Reason::kAdapterDisabled));
  ASSERT_OK_AND_ASSIGN(const LoadResult again, Load(Request("x", "x2")));
  EXPECT_TRUE(again.already_loaded);
}

TEST_P(JournalTest, PublicIdsAreTakenAfterARestart) {
  Start(kRoomy, "{base}");
  ASSERT_THAT(LoadOwn("x"), IsOk());
  Start(kRoomy, "{base}");
  registry_->Restore(journal_.all());
  EXPECT_THAT(LoadOwn("y"), HasReason(Reason::kAdapterExists));
}

TEST_P(JournalTest, OtherContentAfterARestartIsNotServed) {
  ASSERT_THAT(LoadOwn("x"), IsOk());
  sources_.Put("x", ContentOf("other", 2));
  Restart();
  EXPECT_THAT(Acquire({{"x", ""}}), HasReason(Reason::kAdapterFailed));
  EXPECT_EQ(StateOf("x"), AdapterState::kFailed);
  EXPECT_THAT(registry_->Get("x")->error, HasReason(Reason::kSourceChanged));
}

TEST_P(JournalTest, AMachineThatPacksInAnotherWayReadsItAllTheSame) {
  ASSERT_THAT(LoadOwn("x"), IsOk());
  std::vector<AdapterRecord> records = journal_.all();
  records[0].current.memory_bytes = Unit() / 2;
  Start(Unit());
  registry_->Restore(records);
  ASSERT_THAT(LoadOwn("y"), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles y, Acquire({{"y", ""}}));
  const int opens = sources_["x"].opens;
  StartedAcquire waiting = StartAcquire({{"x", ""}});
  SpinUntil([&] { return sources_["x"].opens > opens; });
  y.clear();
  EXPECT_THAT(waiting.pending.Wait(), IsOk());
  EXPECT_EQ(budget_->used(), Unit());
}

class FolderTest : public JournalTest {
 protected:
  static LoadRequest Folder(const std::string& name, const std::string& source) {
    LoadRequest request = Replacing(Request(name, source));
    request.owner = AdapterOwner::kFolder;
    return request;
  }
};
INSTANTIATE_TEST_SUITE_P(Threads, FolderTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(FolderTest, WhatCannotBeLoadedIsShownAsFailed) {
  EXPECT_THAT(Load(Folder("x", "nowhere")), HasReason(Reason::kSourceNotFound));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot failed, registry_->Get("x"));
  EXPECT_EQ(failed.state, AdapterState::kFailed);
  EXPECT_EQ(failed.owner, AdapterOwner::kFolder);
  EXPECT_EQ(failed.source, "nowhere");
  EXPECT_THAT(failed.error, HasReason(Reason::kSourceNotFound));
  EXPECT_EQ(failed.description, nullptr);
  EXPECT_THAT(Acquire({{"x", ""}}), HasReason(Reason::kAdapterFailed));
  EXPECT_THAT(Update(Disabling("x")), HasReason(Reason::kAdapterFailed));
  EXPECT_THAT(SetAlias("x", "a", "b"), HasReason(Reason::kAdapterFailed));
  EXPECT_THAT(Rollback("x", "b"), HasReason(Reason::kAdapterFailed));

  sources_.Put("nowhere", ContentOf("x"));
  ASSERT_THAT(Load(Folder("x", "nowhere")), IsOk());
  EXPECT_EQ(StateOf("x"), AdapterState::kReady);
  EXPECT_THAT(registry_->Get("x")->error, IsOk());
}

TEST_P(FolderTest, AFailedOneCanBeUnloaded) {
  EXPECT_THAT(Load(Folder("x", "nowhere")), HasReason(Reason::kSourceNotFound));
  ASSERT_OK_AND_ASSIGN(const UnloadResult unloaded, Unload(UnloadOf("x")));
  EXPECT_TRUE(unloaded.freed);
  EXPECT_THAT(Names(), IsEmpty());
}

// An empty public id is an id like any other.
TEST_P(FolderTest, AFailedOneTakesNobodysPublicId) {
  Start(kRoomy, "{base}");
  FakeContent content = ContentOf("a");
  content.base_model = "";
  sources_.Put("a", content);
  ASSERT_THAT(Load(Request("a", "a")), IsOk());
  ASSERT_THAT(LoadOwn("b"), IsOk());
  EXPECT_THAT(Load(Folder("x", "nowhere")), HasReason(Reason::kSourceNotFound));
  ASSERT_THAT(Unload(UnloadOf("x")), IsOk());
  EXPECT_THAT(Load(Request("c", "a")), HasReason(Reason::kAdapterExists));
}

TEST_P(FolderTest, AFailedReplaceIsAWarningOfWhatServes) {
  sources_.Put("x", ContentOf("x"));
  ASSERT_THAT(Load(Folder("x", "x")), IsOk());
  FakeContent broken = ContentOf("broken", 2);
  broken.read_error = Error(Reason::kNonFiniteWeights, "tensor t has a NaN");
  sources_.Put("x", broken);
  EXPECT_THAT(Load(Folder("x", "x")), HasReason(Reason::kNonFiniteWeights));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot serving, registry_->Get("x"));
  EXPECT_EQ(serving.state, AdapterState::kReady);
  EXPECT_THAT(serving.warnings, ElementsAre(::testing::HasSubstr("tensor t has a NaN")));
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
  sources_.Put("x", ContentOf("x2", 3));
  ASSERT_THAT(Load(Folder("x", "x")), IsOk());
  EXPECT_THAT(registry_->Get("x")->warnings, IsEmpty());
}

TEST_P(FolderTest, ClientsAndTheFolderDoNotReplaceEachOthers) {
  sources_.Put("x", ContentOf("x"));
  sources_.Put("x2", ContentOf("x2"));
  ASSERT_THAT(Load(Folder("x", "x")), IsOk());
  ASSERT_THAT(Load(Request("y", "x")), IsOk());
  EXPECT_THAT(Load(Replacing(Request("x", "x2"))), HasReason(Reason::kAdapterExists));
  EXPECT_THAT(Load(Folder("y", "x2")), HasReason(Reason::kAdapterExists));
  EXPECT_EQ(StateOf("y"), AdapterState::kReady);
}

}  // namespace
}  // namespace adapterd
