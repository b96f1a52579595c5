// WatchAdapters: every change once and in order, from any place that is remembered.
#include <fmt/format.h>

#include <set>
#include <thread>

#include "service/watch_call.h"
#include "tests/service/fake_adapters_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Type = v1::AdapterEventType;

// One client's watch.
class Watch {
 public:
  Watch(TestServer& server, std::optional<int64_t> from = std::nullopt) {
    v1::WatchAdaptersRequest request;
    if (from) request.set_from_sequence(*from);
    reader_ = server.adapters().WatchAdapters(&context_, request);
  }
  ~Watch() {
    context_.TryCancel();
    if (reader_ != nullptr) Status();
  }

  // Until the server has said that the watch stands, or has refused it.
  void AwaitStanding() { reader_->WaitForInitialMetadata(); }

  // Nullopt when the stream has ended.
  std::optional<v1::AdapterEvent> Next() {
    v1::WatchAdaptersResponse response;
    if (!reader_->Read(&response)) return std::nullopt;
    return response.event();
  }

  std::vector<v1::AdapterEvent> Take(int count) {
    std::vector<v1::AdapterEvent> events;
    while (static_cast<int>(events.size()) < count) {
      std::optional<v1::AdapterEvent> event = Next();
      if (!event) break;
      events.push_back(*std::move(event));
    }
    return events;
  }

  void Cancel() { context_.TryCancel(); }

  // Reads what is left and gives how the stream ended. Once.
  grpc::Status Status() {
    while (Next()) {
    }
    const grpc::Status status = reader_->Finish();
    reader_ = nullptr;
    return status;
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::WatchAdaptersResponse>> reader_;
};

class WatchTest : public FakeAdaptersFixture {
 protected:
  EventLog& events() { return server_.registry().events(); }

  // An event as if it came from the registry.
  void Append(const std::string& name) {
    AdapterSnapshot adapter;
    adapter.name = name;
    events().Append(AdapterEventType::kUpdated, std::move(adapter));
  }

  static std::vector<std::pair<Type, std::string>> Kinds(
      const std::vector<v1::AdapterEvent>& events) {
    std::vector<std::pair<Type, std::string>> kinds;
    for (const v1::AdapterEvent& event : events) {
      kinds.emplace_back(event.type(), event.adapter().name());
    }
    return kinds;
  }
};

TEST_F(WatchTest, EveryKindOfChangeIsToldInOrder) {
  Watch watch(server_);
  watch.AwaitStanding();
  const int64_t start = events().last_sequence();
  const absl::Time begin = absl::Now();
  Load("a", "one", {{"team", "red"}});
  Load("a", "two");
  ASSERT_THAT(server_.SetAlias("a", "prod", RevisionOf("two")).status, IsRpcOk());
  ASSERT_THAT(server_.Rollback("a", RevisionOf("one")).status, IsRpcOk());
  ASSERT_THAT(server_.Unload("a").status, IsRpcOk());
  const std::vector<v1::AdapterEvent> told = watch.Take(5);
  EXPECT_THAT(Kinds(told), ElementsAre(std::pair(v1::ADAPTER_EVENT_TYPE_LOADED, "a"),
                                       std::pair(v1::ADAPTER_EVENT_TYPE_REPLACED, "a"),
                                       std::pair(v1::ADAPTER_EVENT_TYPE_UPDATED, "a"),
                                       std::pair(v1::ADAPTER_EVENT_TYPE_REPLACED, "a"),
                                       std::pair(v1::ADAPTER_EVENT_TYPE_UNLOADED, "a")));
  ASSERT_THAT(told, SizeIs(5));
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(told[i].sequence(), start + 1 + i);
    EXPECT_GE(told[i].time().seconds(), absl::ToUnixSeconds(begin));
    EXPECT_THAT(told[i].adapter().modules(), IsEmpty());
    EXPECT_EQ(told[i].adapter().module_count(), 1);
  }
  EXPECT_EQ(told[0].adapter().revision(), RevisionOf("one"));
  EXPECT_EQ(told[0].adapter().labels().at("team"), "red");
  EXPECT_EQ(told[1].adapter().revision(), RevisionOf("two"));
  EXPECT_EQ(told[2].adapter().aliases().at("prod"), RevisionOf("two"));
  EXPECT_EQ(told[3].adapter().revision(), RevisionOf("one"));
}

TEST_F(WatchTest, WhatDidNotHappenIsNotTold) {
  Load("a", "one");
  Watch watch(server_);
  watch.AwaitStanding();
  Load("a", "one");  // there already
  EXPECT_THAT(server_.Unload("nobody").status, IsRpcError(Reason::kAdapterNotFound));
  EXPECT_THAT(server_.Load("b", "nowhere").status, IsRpcError(Reason::kSourceNotFound));
  Load("c", "one");
  EXPECT_EQ(watch.Next()->adapter().name(), "c");
}

TEST_F(WatchTest, AWatchGoesOnWhereAnotherEnded) {
  const int64_t start = events().last_sequence();
  for (const char* name : {"a", "b", "c"}) Load(name, name);
  for (int64_t from = start; from <= start + 3; ++from) {
    Watch watch(server_, from);
    const auto count = static_cast<int>(start + 3 - from);
    const std::vector<v1::AdapterEvent> told = watch.Take(count);
    ASSERT_THAT(told, SizeIs(count));
    for (int i = 0; i < count; ++i) EXPECT_EQ(told[i].sequence(), from + 1 + i);
  }
}

TEST_F(WatchTest, FromAListingNothingIsMissedWhileLoadsGoOn) {
  std::thread loads([&] {
    for (int i = 0; i < 60; ++i) Load(fmt::format("a{}", 100 + i), "one");
  });
  for (int round = 0; round < 5; ++round) {
    // The names of a listing in pages of three, and of the events after it, are all names.
    std::set<std::string> names;
    v1::ListAdaptersRequest request;
    request.set_page_size(3);
    int64_t sequence = 0;
    do {
      const auto page = server_.List(request);
      ASSERT_THAT(page.status, IsRpcOk());
      for (const v1::Adapter& adapter : page->adapters()) names.insert(adapter.name());
      sequence = page->sequence();
      request.set_page_token(page->next_page_token());
    } while (!request.page_token().empty());
    Watch watch(server_, sequence);
    while (names.size() < 60u) {
      const std::optional<v1::AdapterEvent> event = watch.Next();
      ASSERT_TRUE(event);
      EXPECT_EQ(event->sequence(), ++sequence);
      names.insert(event->adapter().name());
    }
  }
  loads.join();
}

TEST_F(WatchTest, SequencesThatAreNotOfThisLogAreRefused) {
  Load("a", "one");
  const int64_t last = events().last_sequence();
  for (const int64_t from : {last + 1, last - 2, int64_t{0}, last + (int64_t{1} << 41),
                             std::numeric_limits<int64_t>::max()}) {
    Watch watch(server_, from);
    EXPECT_FALSE(watch.Next());
    EXPECT_THAT(watch.Status(), IsRpcError(Reason::kSequenceExpired)) << from - last;
  }
  for (const int64_t from : {int64_t{-1}, std::numeric_limits<int64_t>::min()}) {
    Watch watch(server_, from);
    const grpc::Status status = watch.Status();
    EXPECT_THAT(status, IsRpcError(Reason::kInvalidField));
    EXPECT_THAT(status, HasRpcMetadata("field", "from_sequence"));
  }
}

TEST_F(WatchTest, WhatIsForgottenIsOutOfRange) {
  const int64_t start = events().last_sequence();
  for (size_t i = 0; i < EventLog::kCapacity; ++i) Append("a");
  {
    Watch whole(server_, start);
    EXPECT_THAT(whole.Take(EventLog::kCapacity), SizeIs(EventLog::kCapacity));
  }
  Append("a");
  Watch late(server_, start);
  EXPECT_THAT(late.Status(), IsRpcError(Reason::kSequenceExpired));
}

TEST_F(WatchTest, AReaderThatFallsBehindIsToldSo) {
  Watch slow(server_);
  slow.AwaitStanding();
  // In this process hardly a message is taken before it is read.
  int64_t sequence = events().last_sequence();
  for (size_t i = 0; i < EventLog::kCapacity + 100; ++i) Append("a");
  while (const std::optional<v1::AdapterEvent> event = slow.Next()) {
    EXPECT_EQ(event->sequence(), ++sequence);  // what is told has no gap
  }
  EXPECT_LT(sequence, events().last_sequence());
  EXPECT_THAT(slow.Status(), IsRpcError(Reason::kSequenceExpired));
}

TEST_F(WatchTest, ManyWatchersAreToldTheSame) {
  std::vector<std::unique_ptr<Watch>> watches;
  for (size_t i = 0; i < kMaxWatchers; ++i) {
    watches.push_back(std::make_unique<Watch>(server_));
    watches.back()->AwaitStanding();
  }
  Watch one_more(server_);
  EXPECT_THAT(one_more.Status(), IsRpcError(Reason::kOverloaded));
  for (int i = 0; i < 5; ++i) Append(fmt::format("a{}", i));
  for (const auto& watch : watches) {
    const std::vector<v1::AdapterEvent> told = watch->Take(5);
    ASSERT_THAT(told, SizeIs(5));
    for (int i = 0; i < 5; ++i) EXPECT_EQ(told[i].adapter().name(), fmt::format("a{}", i));
  }
  // When one leaves, another may come.
  watches.pop_back();
  SpinUntil([&] {
    Watch again(server_, events().last_sequence() - 1);
    return again.Next().has_value();
  });
}

TEST_F(WatchTest, AClientThatLeavesLeavesNothingBehind) {
  for (int i = 0; i < 400; ++i) {
    Watch watch(server_);
    if (i % 2 == 0) watch.AwaitStanding();
    Append("a");
  }
  Watch watch(server_);
  watch.AwaitStanding();
  watch.Cancel();
  EXPECT_EQ(watch.Status().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(server_.AwaitNoCalls(kTestPatience));
  Append("a");  // to nobody
}

TEST_F(WatchTest, ADeadlineEndsAWatch) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(50)));
  const auto reader = server_.adapters().WatchAdapters(&context, {});
  v1::WatchAdaptersResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(WatchTest, ADrainEndsWatchesAndLetsNoMoreIn) {
  Watch idle(server_);
  idle.AwaitStanding();
  Watch busy(server_);
  busy.AwaitStanding();
  Append("a");
  EXPECT_TRUE(busy.Next());
  server_.watchers().End();
  EXPECT_THAT(idle.Status(), IsRpcError(Reason::kDraining));
  EXPECT_THAT(busy.Status(), IsRpcError(Reason::kDraining));
  Watch late(server_);
  EXPECT_THAT(late.Status(), IsRpcError(Reason::kDraining));
  EXPECT_TRUE(server_.AwaitNoCalls(kTestPatience));
}

TEST_F(WatchTest, AClientThatDoesNotReadIsCutOff) {
  Watch stuck(server_);
  stuck.AwaitStanding();
  for (int i = 0; i < 10; ++i) Append("a");
  EXPECT_TRUE(stuck.Next());
  server_.watchers().End();
  // Unless it was between two messages at that moment, it holds one that is not taken.
  const bool was_between = server_.AwaitNoCalls(absl::Milliseconds(20));
  server_.watchers().Cut();
  EXPECT_TRUE(server_.AwaitNoCalls(kTestPatience));
  const grpc::Status status = stuck.Status();
  if (was_between) {
    EXPECT_THAT(status, IsRpcError(Reason::kDraining));
  } else {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  }
}

}  // namespace
}  // namespace adapterd
