#include "core/catalog/folder_sync.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/core/catalog/fake_registry.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::SizeIs;
using Kind = FolderEvent::Kind;

namespace fs = std::filesystem;

constexpr absl::Duration kSettle = absl::Milliseconds(300);

// A folder, a registry that does as it is told, and a clock that a test moves. Nothing ever waits.
class FolderSyncTest : public ::testing::Test {
 protected:
  FolderSyncTest() {
    fs::create_directory(temp_ / "watched");
    Restart();
  }

  void Restart() {
    FolderOptions options;
    options.path = temp_ / "watched";
    options.settle = kSettle;
    options.report = [this](const FolderEvent& event) { events_.push_back(event); };
    auto roots = std::make_shared<const SourceRoots>(*SourceRoots::Open({{"", options.path}}));
    roots_ = std::make_shared<RenewableRoots>(std::move(roots));
    sync_ = std::make_unique<FolderSync>(options, registry_.Actions(), roots_, [] {});
  }

  void Write(const std::string& name, const std::string& text = "x") {
    temp_.Write("watched/" + name, text);
  }
  void Remove(const std::string& name) { fs::remove_all(temp_ / ("watched/" + name)); }
  void Link(const std::string& name, const std::string& target) {
    const fs::path fresh = temp_ / "fresh-link";
    fs::create_symlink(target, fresh);
    fs::rename(fresh, temp_ / ("watched/" + name));
  }

  void ScanAfter(absl::Duration passed) {
    now_ += passed;
    sync_->Scan(now_, being_written_);
    sync_->Advance(now_);
  }

  // Two scans with a rest between them, which is what any change needs to be believed.
  void Sync() {
    ScanAfter(absl::Seconds(1));
    ScanAfter(kSettle);
  }

  // Kinds and names since the last call.
  std::vector<std::pair<Kind, std::string>> Told() {
    std::vector<std::pair<Kind, std::string>> told;
    for (const FolderEvent& event : events_) told.emplace_back(event.kind, event.name);
    events_.clear();
    return told;
  }

  size_t loads() const { return registry_.loads().size(); }

  AdapterSnapshot OfClients(const std::string& name) {
    AdapterSnapshot adapter;
    adapter.name = name;
    adapter.state = AdapterState::kReady;
    return adapter;
  }

  const TempDir temp_;
  FakeRegistry registry_;
  std::vector<FolderEvent> events_;
  std::shared_ptr<RenewableRoots> roots_;
  absl::Duration now_ = absl::Hours(1);
  std::set<std::string> being_written_;
  std::unique_ptr<FolderSync> sync_;
};

TEST_F(FolderSyncTest, WhatIsInTheFolderIsLoadedOnceAndWhatIsGoneIsUnloaded) {
  Write("a/weights");
  Write("b/weights");
  Sync();
  EXPECT_THAT(registry_.Names(), ElementsAre("a", "b"));
  const LoadRequest request = registry_.loads()[0];
  EXPECT_EQ(request.name, "a");
  EXPECT_EQ(request.source.source, "a");
  EXPECT_TRUE(request.source.watched);
  EXPECT_TRUE(request.replace);
  EXPECT_EQ(request.owner, AdapterOwner::kFolder);
  for (int i = 0; i < 5; ++i) Sync();
  EXPECT_EQ(loads(), 2U);
  Remove("a");
  Write("c/weights");
  Sync();
  EXPECT_THAT(registry_.Names(), ElementsAre("b", "c"));
  const UnloadRequest unload = registry_.unloads().at(0);
  EXPECT_TRUE(unload.force);
  EXPECT_FALSE(unload.wait);
  EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kUnloaded, "a")));
  Write("a/weights");
  Sync();
  EXPECT_THAT(registry_.Names(), ElementsAre("a", "b", "c"));
  EXPECT_EQ(loads(), 4U);
}

TEST_F(FolderSyncTest, AChangeIsLoadedWhenItHasRested) {
  Write("a/weights");
  ScanAfter(absl::ZeroDuration());
  ScanAfter(kSettle - absl::Nanoseconds(1));
  EXPECT_EQ(loads(), 0U);
  ScanAfter(absl::Nanoseconds(1));
  EXPECT_EQ(loads(), 1U);
  Write("a/weights", "xy");
  ScanAfter(absl::Seconds(9));
  EXPECT_EQ(loads(), 1U);
  EXPECT_EQ(sync_->pause(), kSettle);
  ScanAfter(kSettle);
  EXPECT_EQ(loads(), 2U);
  EXPECT_GT(sync_->pause(), kSettle);
}

TEST_F(FolderSyncTest, AFolderThatIsStillBeingCopiedIsWaitedFor) {
  Write("a/adapter_config.json");
  std::string weights;
  for (int i = 0; i < 20; ++i) {
    ScanAfter(kSettle);
    weights += "more";
    Write("a/weights", weights);
  }
  EXPECT_EQ(loads(), 0U);
  ScanAfter(kSettle);
  ScanAfter(kSettle);
  EXPECT_EQ(loads(), 1U);
}

TEST_F(FolderSyncTest, AWriterThatRestsIsWaitedForButNotForever) {
  Write("a/weights");
  Write("b/sub/weights");
  Write("b-2/weights");
  being_written_ = {temp_ / "watched/a", temp_ / "watched/b/sub"};
  ScanAfter(absl::ZeroDuration());
  ScanAfter(absl::Seconds(30));
  EXPECT_THAT(registry_.Names(), ElementsAre("b-2"));
  EXPECT_EQ(sync_->pause(), kSettle);
  being_written_.erase(temp_ / "watched/a");
  ScanAfter(kSettle);
  EXPECT_THAT(registry_.Names(), ElementsAre("a", "b-2"));
  ScanAfter(kWriterPatience - absl::Seconds(30) - kSettle);
  EXPECT_THAT(registry_.Names(), ElementsAre("a", "b", "b-2"));
  Remove("b");
  Sync();
  EXPECT_THAT(registry_.Names(), ElementsAre("a", "b-2"));
}

TEST_F(FolderSyncTest, AFolderThatIsGoneOnlyForAMomentIsNotUnloaded) {
  Write("a/weights");
  Sync();
  fs::rename(temp_ / "watched/a", temp_ / "old");
  ScanAfter(absl::Seconds(1));
  Write("a/weights", "new");
  ScanAfter(kSettle);
  ScanAfter(kSettle);
  EXPECT_THAT(registry_.unloads(), IsEmpty());
  EXPECT_EQ(loads(), 2U);
}

TEST_F(FolderSyncTest, AMoveIntoPlaceAndASwappedSymlinkAreChanges) {
  Write("..v1/a/weights", "1");
  Link("..data", "..v1");
  Link("a", "..data/a");
  Write("b/weights", "b");
  Sync();
  EXPECT_EQ(loads(), 2U);
  Write("..v2/a/weights", "2");
  Link("..data", "..v2");
  Remove("..v1");
  temp_.Write("new/weights", "c");
  fs::rename(temp_ / "watched/b", temp_ / "old");
  fs::rename(temp_ / "new", temp_ / "watched/b");
  Sync();
  EXPECT_EQ(loads(), 4U);
  EXPECT_THAT(registry_.Names(), ElementsAre("a", "b"));
}

TEST_F(FolderSyncTest, AFailureIsToldOnceAndTriedAgainWhenTheFolderChanges) {
  registry_.Fail("a", Error(Reason::kMalformedConfig, "not JSON"));
  Write("a/weights");
  for (int i = 0; i < 100; ++i) Sync();
  EXPECT_EQ(loads(), 1U);
  EXPECT_EQ(events_.at(0).status.message(), "not JSON");
  EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kFailed, "a")));
  EXPECT_EQ(registry_.Get("a")->state, AdapterState::kFailed);
  Write("a/weights", "as bad as before");
  Sync();
  EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kFailed, "a")));
  registry_.Fail("a", absl::OkStatus());
  Write("a/weights", "good");
  Sync();
  EXPECT_EQ(loads(), 3U);
  EXPECT_EQ(registry_.Get("a")->state, AdapterState::kReady);
  EXPECT_THAT(Told(), IsEmpty());
}

TEST_F(FolderSyncTest, AFailureThatMayPassIsTriedAgainEverLessOften) {
  for (const Reason reason : {Reason::kSourceChanged, Reason::kSourceUnavailable,
                              Reason::kMemoryBudgetExceeded, Reason::kOverloaded}) {
    const std::string name(ReasonName(reason));
    registry_.Fail(name, Error(reason, "later"));
    Write(name + "/weights");
    Sync();
    const size_t first = loads();
    ScanAfter(kFirstRetryPause - absl::Nanoseconds(1));
    EXPECT_EQ(loads(), first) << name;
    ScanAfter(absl::Nanoseconds(1));
    EXPECT_EQ(loads(), first + 1) << name;
    ScanAfter(kFirstRetryPause);
    EXPECT_EQ(loads(), first + 1) << name;
    ScanAfter(kFirstRetryPause);
    EXPECT_EQ(loads(), first + 2) << name;
    for (int i = 0; i < 600; ++i) ScanAfter(absl::Seconds(1));
    EXPECT_LE(loads(), first + 16) << name;
    EXPECT_GE(loads(), first + 10) << name;
    EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kFailed, name)));
    registry_.Fail(name, absl::OkStatus());
    ScanAfter(kLastRetryPause);
    EXPECT_EQ(registry_.Get(name)->state, AdapterState::kReady) << name;
    Remove(name);
    Sync();
    Told();
  }
}

TEST_F(FolderSyncTest, AReplaceThatFailsLeavesWhatServes) {
  Write("a/weights");
  Sync();
  registry_.Fail("a", Error(Reason::kInvalidAdapter, "half"));
  Write("a/weights", "broken");
  Sync();
  EXPECT_EQ(registry_.Get("a")->state, AdapterState::kReady);
  EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kFailed, "a")));
}

TEST_F(FolderSyncTest, AReloadThatFailedElsewhereIsRepairedWhenItMayPass) {
  Write("a/weights");
  Sync();
  AdapterSnapshot failed = *registry_.Get("a");
  failed.state = AdapterState::kFailed;
  failed.error = Error(Reason::kSourceUnavailable, "the disk was away");
  registry_.Put(failed);
  Sync();
  EXPECT_EQ(registry_.Get("a")->state, AdapterState::kReady);
  failed.error = Error(Reason::kInternal, "who knows");
  registry_.Put(failed);
  Sync();
  EXPECT_EQ(loads(), 2U);
}

TEST_F(FolderSyncTest, WhatClientsOwnIsLeftAlone) {
  registry_.Put(OfClients("a"));
  Write("a/weights");
  Sync();
  Write("a/weights", "new");
  Sync();
  EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kSkipped, "a")));
  EXPECT_EQ(loads(), 0U);
  Remove("a");
  Sync();
  EXPECT_THAT(registry_.Names(), ElementsAre("a"));
  Write("a/weights");
  Sync();
  registry_.Remove("a");
  Sync();
  EXPECT_EQ(registry_.Get("a")->owner, AdapterOwner::kFolder);
}

TEST_F(FolderSyncTest, WhatAClientReplacedBelongsToTheClient) {
  Write("a/weights");
  Sync();
  registry_.Put(OfClients("a"));
  Write("a/weights", "new");
  Sync();
  Remove("a");
  Sync();
  EXPECT_EQ(loads(), 1U);
  EXPECT_THAT(registry_.unloads(), IsEmpty());
  EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kSkipped, "a")));
}

TEST_F(FolderSyncTest, WhatAClientUnloadedComesBackAndPinsAndLabelsStay) {
  Write("a/weights");
  Sync();
  registry_.Remove("a");
  Sync();
  AdapterSnapshot adapter = *registry_.Get("a");
  adapter.pinned = true;
  adapter.labels = {{"team", "x"}};
  registry_.Put(adapter);
  Write("a/weights", "new");
  Sync();
  EXPECT_EQ(loads(), 3U);
  EXPECT_TRUE(registry_.Get("a")->pinned);
  EXPECT_EQ(registry_.Get("a")->labels, adapter.labels);
}

TEST_F(FolderSyncTest, AFolderThatCannotBeReadChangesNothing) {
  Write("a/weights");
  Sync();
  fs::rename(temp_ / "watched", temp_ / "away");
  for (int i = 0; i < 10; ++i) Sync();
  EXPECT_THAT(registry_.Names(), ElementsAre("a"));
  EXPECT_THAT(events_.at(0).status, HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kUnreadable, "")));
  fs::rename(temp_ / "away", temp_ / "watched");
  Write("b/weights");
  Sync();
  EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kReadable, "")));
  EXPECT_THAT(registry_.Names(), ElementsAre("a", "b"));
  EXPECT_EQ(loads(), 2U);
}

TEST_F(FolderSyncTest, AnotherFolderWithoutAdaptersIsAVolumeThatIsNotMounted) {
  Write("a/weights");
  Sync();
  fs::rename(temp_ / "watched", temp_ / "volume");
  fs::create_directory(temp_ / "watched");
  Sync();
  EXPECT_THAT(registry_.Names(), ElementsAre("a"));
  EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kUnreadable, "")));
  Write("b/weights");
  Sync();
  EXPECT_THAT(registry_.Names(), ElementsAre("b"));
  Remove("b");
  Sync();
  EXPECT_THAT(registry_.Names(), IsEmpty());
}

TEST_F(FolderSyncTest, TheWholeFolderMayBeASymlinkThatIsSwapped) {
  fs::rename(temp_ / "watched", temp_ / "v1");
  temp_.Write("v1/a/one", "1");
  temp_.Write("v2/a/two", "2");
  fs::create_symlink("v1", temp_ / "watched");
  Sync();
  EXPECT_TRUE(roots_->Get()->OpenFolder("a")->Has("one"));
  fs::create_symlink("v2", temp_ / "fresh");
  fs::rename(temp_ / "fresh", temp_ / "watched");
  Sync();
  EXPECT_EQ(loads(), 2U);
  EXPECT_TRUE(roots_->Get()->OpenFolder("a")->Has("two"));
}

TEST_F(FolderSyncTest, SomeLoadsAtATimeUntilAllAreLoaded) {
  constexpr size_t kCount = 500;
  registry_.Hold(true);
  for (size_t i = 0; i < kCount; ++i) Write(fmt::format("a{}/weights", i));
  Sync();
  EXPECT_FALSE(sync_->settled());
  size_t ended = 0;
  while (ended < kCount) {
    const size_t running = registry_.FinishAll();
    ASSERT_EQ(running, std::min<size_t>(kMaxConcurrentLoads, kCount - ended));
    EXPECT_FALSE(sync_->settled());
    ended += running;
    sync_->Advance(now_);
  }
  EXPECT_TRUE(sync_->settled());
  EXPECT_THAT(registry_.Names(), SizeIs(kCount));
  EXPECT_EQ(loads(), kCount);
}

TEST_F(FolderSyncTest, AChangeDuringALoadIsLoadedAfterIt) {
  registry_.Hold(true);
  Write("a/weights");
  Sync();
  Write("a/weights", "new");
  Sync();
  Sync();
  EXPECT_EQ(loads(), 1U);
  EXPECT_EQ(registry_.FinishAll(), 1U);
  sync_->Advance(now_);
  EXPECT_EQ(loads(), 2U);
  Remove("a");
  Sync();
  EXPECT_EQ(registry_.FinishAll(), 1U);
  sync_->Advance(now_);
  EXPECT_THAT(registry_.Names(), IsEmpty());
}

TEST_F(FolderSyncTest, ItHasSettledWhenWhatWasThereFirstIsLoadedOrHasFailed) {
  ScanAfter(absl::ZeroDuration());
  EXPECT_TRUE(sync_->settled()) << "nothing to load";
  Restart();
  registry_.Hold(true);
  registry_.Fail("bad", Error(Reason::kInvalidAdapter, "bad"));
  Write("bad/weights");
  Write("good/weights");
  Write("busy/weights", "1");
  ScanAfter(absl::ZeroDuration());
  EXPECT_FALSE(sync_->settled());
  Write("busy/weights", "12");
  ScanAfter(kSettle);
  EXPECT_EQ(loads(), 2U) << "what is still being copied is not waited for";
  EXPECT_FALSE(sync_->settled());
  registry_.FinishAll();
  sync_->Advance(now_);
  EXPECT_TRUE(sync_->settled());
}

TEST_F(FolderSyncTest, AnUnloadThatFailsIsTriedAgainAtTheNextScan) {
  Write("a/weights");
  Sync();
  registry_.Fail("a", Error(Reason::kDraining, "not now"));
  Remove("a");
  Sync();
  EXPECT_THAT(registry_.unloads(), SizeIs(1));
  EXPECT_THAT(Told(), IsEmpty());
  registry_.Fail("a", absl::OkStatus());
  ScanAfter(absl::Seconds(5));
  EXPECT_THAT(registry_.Names(), IsEmpty());
  EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kUnloaded, "a")));
}

TEST_F(FolderSyncTest, TheEndCancelsWhatRuns) {
  registry_.Hold(true);
  Write("a/weights");
  Write("b/weights");
  Sync();
  sync_.reset();
  EXPECT_EQ(registry_.FinishAll(), 0U);
  registry_.Hold(false);
  Restart();
  Sync();
  EXPECT_THAT(registry_.Names(), ElementsAre("a", "b"));
}

TEST_F(FolderSyncTest, AFolderWithABadNameIsToldOnce) {
  Write("not a name/weights");
  Sync();
  Sync();
  EXPECT_THAT(Told(), ElementsAre(Pair(Kind::kMisnamed, "not a name")));
  EXPECT_EQ(loads(), 0U);
}

}  // namespace
}  // namespace adapterd
