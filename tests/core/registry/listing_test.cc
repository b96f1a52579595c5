// Listings, totals, and keys of stored content.
#include <fmt/format.h>

#include <thread>

#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class ListingTest : public RegistryTest {
 protected:
  std::vector<std::string> List(const ListQuery& query) const {
    std::vector<std::string> names;
    for (const AdapterSnapshot& adapter : registry_->List(query).adapters) {
      names.push_back(adapter.name);
    }
    return names;
  }
};
INSTANTIATE_TEST_SUITE_P(Threads, ListingTest, ::testing::Values(1, 4), ThreadsName);

struct Filter {
  std::string name;
  std::function<void(ListQuery&)> set;
  std::vector<std::string> expected;
};

TEST_P(ListingTest, FiltersMustAllMatch) {
  Start(4 * Unit());
  struct Adapter {
    const char* name;
    const char* base;
    Labels labels;
  };
  const Adapter adapters[] = {
      {"ab", "base", {{"team", "red"}}},
      {"abc", "other", {{"team", "red"}, {"tier", "1"}}},
      {"abd", "base", {{"team", "blue"}}},
      {"b", "base", {}},
  };
  for (const Adapter& adapter : adapters) {
    FakeContent content = ContentOf(adapter.name);
    content.base_model = adapter.base;
    sources_.Put(adapter.name, content);
    LoadRequest request = Request(adapter.name, adapter.name);
    request.labels = adapter.labels;
    ASSERT_THAT(Load(request), IsOk());
  }
  ASSERT_THAT(Acquire({{"ab", ""}}), IsOk());
  registry_->SetMemoryBudget(3 * Unit());  // "abc" goes
  FakeSource& loading = sources_.Put("loading", ContentOf("loading"));
  loading.open_gate.Close();
  LoadRequest request = Request("loading", "loading");
  request.labels = {{"team", "red"}};
  Started load = StartLoad(request);
  loading.open_gate.AwaitVisitor();

  const Filter filters[] = {
      {"None", [](ListQuery&) {}, {"ab", "abc", "abd", "b", "loading"}},
      {"Prefix", [](ListQuery& q) { q.name_prefix = "ab"; }, {"ab", "abc", "abd"}},
      {"PrefixOfNone", [](ListQuery& q) { q.name_prefix = "abca"; }, {}},
      {"Base", [](ListQuery& q) { q.base_model = "base"; }, {"ab", "abd", "b"}},
      {"Label",
       [](ListQuery& q) {
         q.labels = {{"team", "red"}};
       },
       {"ab", "abc", "loading"}},
      {"Labels",
       [](ListQuery& q) {
         q.labels = {{"team", "red"}, {"tier", "1"}};
       },
       {"abc"}},
      {"LabelWithoutValue",
       [](ListQuery& q) {
         q.labels = {{"team", ""}};
       },
       {}},
      {"Ready", [](ListQuery& q) { q.state = AdapterState::kReady; }, {"ab", "abd", "b"}},
      {"Evicted", [](ListQuery& q) { q.state = AdapterState::kEvicted; }, {"abc"}},
      {"Loading", [](ListQuery& q) { q.state = AdapterState::kLoading; }, {"loading"}},
      {"Failed", [](ListQuery& q) { q.state = AdapterState::kFailed; }, {}},
      {"After", [](ListQuery& q) { q.after = "abc"; }, {"abd", "b", "loading"}},
      {"AfterWhatIsGone", [](ListQuery& q) { q.after = "abca"; }, {"abd", "b", "loading"}},
      {"AfterAndPrefix",
       [](ListQuery& q) {
         q.after = "ab";
         q.name_prefix = "ab";
         q.base_model = "base";
       },
       {"abd"}},
  };
  for (const Filter& filter : filters) {
    ListQuery query;
    filter.set(query);
    EXPECT_EQ(List(query), filter.expected) << filter.name;
  }
  ListQuery two;
  two.name_prefix = "a";
  two.limit = 2;
  const ListPage page = registry_->List(two);
  EXPECT_EQ(page.adapters.size(), 2u);
  EXPECT_TRUE(page.more);
  EXPECT_EQ(page.total, 3);
  two.after = "abc";
  EXPECT_FALSE(registry_->List(two).more);
  EXPECT_EQ(registry_->List(two).total, 3);
  loading.open_gate.Open();
  EXPECT_THAT(load.pending.Wait(), IsOk());
}

// Many thousands, most of them only known, as after a restart.
TEST_P(ListingTest, PagesUnderChangeShowOnceWhatWasThereAllTheTime) {
  constexpr int kAdapters = 2000;
  ASSERT_THAT(LoadOwn("model"), IsOk());
  std::vector<AdapterRecord> records;
  for (int i = 0; i < kAdapters; ++i) {
    AdapterRecord record;
    record.name = fmt::format("n{}", 10000 + i);
    record.public_id = record.name;
    record.current.revision = RevisionOf(record.name);
    record.current.source.source = record.name;
    records.push_back(record);
  }
  Start(kRoomy);
  registry_->Restore(records);
  std::atomic<bool> done{false};
  std::thread changes([&] {
    for (int i = 1; !done; i = i % (kAdapters / 2) + 1) {  // every other one goes, some come
      Unload(UnloadOf(fmt::format("n{}", 10000 + 2 * i - 1))).IgnoreError();
      EXPECT_THAT(LoadOwn(fmt::format("n1{}", i)), IsOk());
    }
  });
  for (int round = 0; round < 3; ++round) {
    std::vector<std::string> names;
    ListQuery query;
    query.limit = 300;
    for (bool more = true; more;) {
      const ListPage page = registry_->List(query);
      for (const AdapterSnapshot& adapter : page.adapters) names.push_back(adapter.name);
      more = page.more;
      query.after = names.back();
    }
    EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
    EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
    for (int i = 0; i < kAdapters; i += 2) {
      EXPECT_TRUE(std::binary_search(names.begin(), names.end(), fmt::format("n{}", 10000 + i)));
    }
  }
  done = true;
  changes.join();
}

TEST_P(ListingTest, ThePageSaysWhereAWatchMayStart) {
  const int64_t start = registry_->List({}).sequence;
  EXPECT_EQ(start, registry_->events().last_sequence());
  ASSERT_THAT(LoadOwn("x"), IsOk());
  EXPECT_EQ(registry_->List({}).sequence, start + 1);
}

TEST_P(ListingTest, TotalsFollowEveryChange) {
  Start(2 * Unit());
  const auto totals = [&] {
    const RegistryTotals all = registry_->totals();
    EXPECT_EQ(all.memory_bytes, budget_->used());
    EXPECT_EQ(all.budget_bytes, budget_->limit());
    return std::vector<int64_t>{all.adapters, all.resident, all.parameters};
  };
  const int64_t parameters = 2 * (8 + 4);  // of the fake module
  EXPECT_THAT(totals(), ElementsAre(0, 0, 0));
  ASSERT_THAT(LoadOwn("x"), IsOk());
  ASSERT_THAT(LoadOwn("y"), IsOk());
  EXPECT_THAT(totals(), ElementsAre(2, 2, 2 * parameters));
  ASSERT_THAT(LoadOwn("z"), IsOk());
  EXPECT_THAT(totals(), ElementsAre(3, 2, 3 * parameters));
  FakeContent large = ContentOf("large");
  large.modules[0].rank = 1;
  sources_.Put("large", large);
  ASSERT_THAT(Load(Replacing(Request("x", "large"))), IsOk());  // evicted until now
  EXPECT_THAT(totals(), ElementsAre(3, 2, 2 * parameters + parameters / 2));
  EvictAll();
  EXPECT_THAT(totals(), ElementsAre(3, 0, 2 * parameters + parameters / 2));
  ASSERT_THAT(Acquire({{"y", ""}}), IsOk());
  EXPECT_THAT(totals(), ElementsAre(3, 1, 2 * parameters + parameters / 2));
  for (const char* name : {"x", "y", "z"}) ASSERT_THAT(Unload(UnloadOf(name)), IsOk());
  EXPECT_THAT(totals(), ElementsAre(0, 0, 0));
}

TEST_P(ListingTest, StoredKeysAreThoseOfAllRevisionsAndOfLoadsThatRun) {
  options_.keep_revisions = 1;
  Start(kRoomy);
  const auto stored = [&](const std::string& name, const std::string& key) {
    LoadRequest request = Replacing(Request(name, ""));
    request.source.stored = key;
    return request;
  };
  EXPECT_THAT(registry_->StoredKeys(), IsEmpty());
  ASSERT_THAT(LoadOwn("plain"), IsOk());
  for (const char* key : {"1", "2", "3"}) {
    sources_.Put("", ContentOf(key, key[0]));
    ASSERT_THAT(Load(stored("x", key)), IsOk());
  }
  EXPECT_THAT(registry_->StoredKeys(), UnorderedElementsAre("2", "3"));
  EvictAll();
  EXPECT_THAT(registry_->StoredKeys(), UnorderedElementsAre("2", "3"));
  sources_[""].open_gate.Close();
  Started load = StartLoad(stored("y", "4"));
  EXPECT_THAT(registry_->StoredKeys(), UnorderedElementsAre("2", "3", "4"));
  sources_[""].open_gate.Open();
  ASSERT_THAT(load.pending.Wait(), IsOk());
  ASSERT_THAT(Unload(UnloadOf("x")), IsOk());
  EXPECT_THAT(registry_->StoredKeys(), ElementsAre("4"));
}

}  // namespace
}  // namespace adapterd
