// Events: the log itself, and what each change of the registry adds to it.
#include "core/registry/event_log.h"

#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

AdapterSnapshot Named(const std::string& name) {
  AdapterSnapshot snapshot;
  snapshot.name = name;
  return snapshot;
}

std::vector<std::string> NamesOf(const absl::StatusOr<std::vector<EventPtr>>& events) {
  std::vector<std::string> names;
  for (const EventPtr& event : events.value()) names.push_back(event->adapter.name);
  return names;
}

TEST(EventLogTest, EventsComeInOrderAndSequencesGrowByOne) {
  EventLog log;
  const int64_t start = log.last_sequence();
  EXPECT_THAT(log.After(start, 10).value(), IsEmpty());
  for (const char* name : {"a", "b", "c"}) log.Append(AdapterEventType::kLoaded, Named(name));
  EXPECT_EQ(log.last_sequence(), start + 3);
  EXPECT_THAT(NamesOf(log.After(start, 10)), ElementsAre("a", "b", "c"));
  EXPECT_THAT(NamesOf(log.After(start, 2)), ElementsAre("a", "b"));
  EXPECT_THAT(NamesOf(log.After(start + 2, 10)), ElementsAre("c"));
  EXPECT_EQ(log.After(start + 2, 10).value()[0]->sequence, start + 3);
}

TEST(EventLogTest, TheNewestAreThereHoweverFewThereAre) {
  EventLog log;
  EXPECT_THAT(log.Last(5), IsEmpty());
  for (const char* name : {"a", "b", "c"}) log.Append(AdapterEventType::kLoaded, Named(name));
  EXPECT_THAT(NamesOf(log.Last(2)), ElementsAre("b", "c"));
  EXPECT_THAT(NamesOf(log.Last(5)), ElementsAre("a", "b", "c"));
  EXPECT_THAT(log.Last(0), IsEmpty());
}

TEST(EventLogTest, WhatIsNotKeptOrNotOfThisLogHasExpired) {
  EventLog log;
  const int64_t start = log.last_sequence();
  for (size_t i = 0; i < EventLog::kCapacity + 1; ++i) {
    log.Append(AdapterEventType::kUpdated, Named(std::to_string(i)));
  }
  for (const int64_t bad : {start, start - 1, log.last_sequence() + 1, int64_t{0}, int64_t{-1}}) {
    const auto refused = log.After(bad, 1);
    EXPECT_THAT(refused, HasReason(Reason::kSequenceExpired)) << bad - start;
    EXPECT_THAT(refused, HasErrorMetadata("actual", std::to_string(bad)));
  }
  EXPECT_THAT(NamesOf(log.After(start + 1, 1)), ElementsAre("1"));
  EXPECT_EQ(log.After(start + 1, 10 * EventLog::kCapacity)->size(), EventLog::kCapacity);
  EXPECT_NE(EventLog().last_sequence(), start);
}

TEST(EventLogTest, AListenerHearsOfEachEventUntilItUnsubscribes) {
  EventLog log;
  int first = 0;
  int second = 0;
  const int64_t id = log.Subscribe([&] { ++first; });
  log.Subscribe([&] { ++second; });
  log.Append(AdapterEventType::kLoaded, Named("a"));
  log.Unsubscribe(id);
  log.Append(AdapterEventType::kLoaded, Named("b"));
  EXPECT_EQ(first, 1);
  EXPECT_EQ(second, 2);
}

class EventsTest : public RegistryTest {
 protected:
  // Name, type and revision of what has happened since the last call.
  std::vector<std::string> News() {
    static constexpr const char* kTypes[] = {"loaded",  "replaced", "evicted", "restored",
                                             "updated", "failed",   "unloaded"};
    std::vector<std::string> news;
    const auto events = registry_->events().After(seen_, 100);
    for (const EventPtr& event : events.value()) {
      EXPECT_EQ(event->sequence, ++seen_);
      EXPECT_EQ(event->adapter.manifest, nullptr);
      news.push_back(std::string(kTypes[static_cast<int>(event->type)]) + " " +
                     event->adapter.name);
      last_ = event->adapter;
    }
    return news;
  }

  void Restart(int64_t budget) {
    Start(budget);
    seen_ = registry_->events().last_sequence();
  }

  int64_t seen_ = 0;
  AdapterSnapshot last_;
};
INSTANTIATE_TEST_SUITE_P(Threads, EventsTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(EventsTest, EachChangeHasItsEvent) {
  options_.keep_revisions = 1;
  Restart(2 * Unit());
  ASSERT_THAT(LoadOwn("x"), IsOk());
  EXPECT_THAT(News(), ElementsAre("loaded x"));
  EXPECT_EQ(last_.state, AdapterState::kReady);
  EXPECT_EQ(last_.digest.revision, RevisionOf("x"));
  ASSERT_THAT(LoadOwn("x"), IsOk());
  EXPECT_THAT(News(), IsEmpty());

  sources_.Put("x2", ContentOf("x2"));
  ASSERT_THAT(Load(Replacing(Request("x", "x2"))), IsOk());
  EXPECT_THAT(News(), ElementsAre("replaced x"));
  EXPECT_EQ(last_.digest.revision, RevisionOf("x2"));
  ASSERT_THAT(Rollback("x", RevisionOf("x")), IsOk());
  EXPECT_THAT(News(), ElementsAre("replaced x"));
  EXPECT_EQ(last_.digest.revision, RevisionOf("x"));

  LoadRequest pinned = Replacing(Request("x", "x"));
  pinned.pinned = true;
  ASSERT_THAT(Load(pinned), IsOk());
  EXPECT_THAT(News(), ElementsAre("updated x"));
  EXPECT_TRUE(last_.pinned);
  UpdateRequest unpin;
  unpin.name = "x";
  unpin.pinned = false;
  ASSERT_THAT(Update(unpin), IsOk());
  EXPECT_THAT(News(), ElementsAre("updated x"));
  ASSERT_THAT(SetAlias("x", "a", RevisionOf("x")), IsOk());
  EXPECT_THAT(News(), ElementsAre("updated x"));

  EvictAll();
  EXPECT_THAT(News(), ElementsAre("evicted x"));  // once, though a kept revision went, too
  EXPECT_EQ(last_.state, AdapterState::kEvicted);
  EXPECT_EQ(last_.memory_bytes, 0);
  ASSERT_THAT(Acquire({{"x", RevisionOf("x2")}}), IsOk());
  EXPECT_THAT(News(), IsEmpty());  // the adapter itself is still evicted
  ASSERT_THAT(Acquire({{"x", ""}}), IsOk());
  EXPECT_THAT(News(), ElementsAre("restored x"));
  EXPECT_EQ(last_.state, AdapterState::kReady);

  EvictAll();
  sources_.Put("x", ContentOf("other", 2));
  ASSERT_THAT(Acquire({{"x", ""}}), HasReason(Reason::kAdapterFailed));
  EXPECT_THAT(News(), ElementsAre("evicted x", "failed x"));
  EXPECT_THAT(last_.error, HasReason(Reason::kSourceChanged));
  sources_.Put("x", ContentOf("x", 3));
  ASSERT_THAT(Load(Request("x", "x")), IsOk());
  EXPECT_THAT(News(), ElementsAre("restored x"));
  ASSERT_THAT(Unload(UnloadOf("x")), IsOk());
  EXPECT_THAT(News(), ElementsAre("unloaded x"));
  EXPECT_EQ(last_.digest.revision, RevisionOf("x"));
}

TEST_P(EventsTest, WhatMakesRoomIsToldBeforeWhatTakesIt) {
  Restart(Unit());
  ASSERT_THAT(LoadOwn("a"), IsOk());
  ASSERT_THAT(LoadOwn("b"), IsOk());
  EXPECT_THAT(News(), ElementsAre("loaded a", "evicted a", "loaded b"));
}

TEST_P(EventsTest, WhatFailsChangesNothingAndIsNotToldOf) {
  Restart(Unit());
  EXPECT_THAT(Load(Request("x", "nowhere")), HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(Unload(UnloadOf("x")), HasReason(Reason::kAdapterNotFound));
  EXPECT_THAT(News(), IsEmpty());
}

TEST_P(EventsTest, AFolderWhoseAdapterCannotBeLoadedIsToldOf) {
  Restart(Unit());
  LoadRequest request = Request("x", "nowhere");
  request.owner = AdapterOwner::kFolder;
  EXPECT_THAT(Load(request), HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(News(), ElementsAre("failed x"));
  EXPECT_EQ(last_.state, AdapterState::kFailed);
  EXPECT_THAT(last_.error, HasReason(Reason::kSourceNotFound));
}

}  // namespace
}  // namespace adapterd
