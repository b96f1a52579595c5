// Loads: what they publish, how equal ones are shared, and that failed ones leave nothing behind.
#include <algorithm>
#include <new>
#include <thread>

#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using LoadTest = RegistryTest;
INSTANTIATE_TEST_SUITE_P(Threads, LoadTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(LoadTest, ALoadPublishesAReadyAdapterWithItsRevision) {
  const FakeContent content;
  sources_.Put("a", content);
  LoadRequest request = Request("x");
  request.labels = {{"team", "red"}};
  request.pinned = true;
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(request));
  EXPECT_FALSE(result.already_loaded);
  EXPECT_EQ(result.replaced_revision, "");
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot adapter, registry_->Get("x"));
  for (const AdapterSnapshot* snapshot : {&result.adapter, &adapter}) {
    EXPECT_EQ(snapshot->name, "x");
    EXPECT_EQ(snapshot->state, AdapterState::kReady);
    EXPECT_EQ(snapshot->digest, DigestOf(content));
    EXPECT_EQ(snapshot->public_id, "base:x");
    EXPECT_EQ(snapshot->source, "a");
    EXPECT_EQ(snapshot->memory_bytes, BytesOf(content));
    EXPECT_EQ(snapshot->labels, request.labels);
    EXPECT_TRUE(snapshot->pinned);
    EXPECT_NE(snapshot->etag, "");
    EXPECT_EQ(snapshot->use_count, 0);
    EXPECT_EQ(snapshot->in_flight, 0);
    EXPECT_TRUE(snapshot->load_time.has_value());
    EXPECT_FALSE(snapshot->last_use_time.has_value());
    ASSERT_NE(snapshot->manifest, nullptr);
    EXPECT_EQ(snapshot->manifest->modules.size(), 1u);
    EXPECT_THAT(snapshot->draining_revisions, IsEmpty());
  }
  EXPECT_EQ(budget_->used(), BytesOf(content));
  const std::vector<LoadEvent> events = Events();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].name, "x");
  EXPECT_THAT(events[0].status, IsOk());
  EXPECT_TRUE(events[0].read);
}

TEST_P(LoadTest, AnAdapterIsLoadingUntilItsLoadEnds) {
  FakeSource& source = sources_.Put("a");
  source.read_gate.Close();
  Started started = StartLoad(Request("x"));
  source.read_gate.AwaitVisitor();
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot adapter, registry_->Get("x"));
  EXPECT_EQ(adapter.state, AdapterState::kLoading);
  EXPECT_EQ(adapter.manifest, nullptr);
  EXPECT_EQ(adapter.source, "a");
  EXPECT_THAT(Names(), ElementsAre("x"));
  EXPECT_FALSE(started.pending.answered());
  source.read_gate.Open();
  EXPECT_THAT(started.pending.Wait(), IsOk());
}

TEST_P(LoadTest, ListingsAreSortedByName) {
  sources_.Put("a");
  for (const char* name : {"b", "a", "_", "B", "a.1", "a-1"}) {
    ASSERT_THAT(Load(Request(name)), IsOk());
  }
  EXPECT_THAT(Names(), ElementsAre("B", "_", "a", "a-1", "a.1", "b"));
}

TEST_P(LoadTest, ManyEqualLoadsShareOneRead) {
  FakeSource& source = sources_.Put("a");
  source.read_gate.Close();
  constexpr int kCallers = 64;
  std::vector<Started> started;
  started.push_back(StartLoad(Request("x")));
  source.read_gate.AwaitVisitor();
  std::vector<std::thread> threads;
  absl::Mutex mutex;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kCallers / 8; ++i) {
        Started one = StartLoad(Request("x"));
        absl::MutexLock lock(&mutex);
        started.push_back(std::move(one));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  source.read_gate.Open();
  const std::string revision = DigestOf(FakeContent()).revision;
  for (Started& one : started) {
    ASSERT_OK_AND_ASSIGN(const LoadResult result, one.pending.Wait());
    EXPECT_EQ(result.adapter.digest.revision, revision);
    EXPECT_FALSE(result.already_loaded);
  }
  EXPECT_EQ(source.opens, 1);
  EXPECT_EQ(source.reads, 1);
  EXPECT_EQ(source.digests, 0);
  EXPECT_EQ(budget_->used(), BytesOf(FakeContent()));
  EXPECT_EQ(Events().size(), 1u);
}

TEST_P(LoadTest, OtherOptionsOnALoadingNameWaitAndAreThenDecided) {
  FakeSource& source = sources_.Put("a");
  source.read_gate.Close();
  Started first = StartLoad(Request("x"));
  source.read_gate.AwaitVisitor();
  LoadRequest pinned = Request("x");
  pinned.pinned = true;
  Started refused = StartLoad(pinned);
  Started replaced = StartLoad(Replacing(pinned));
  EXPECT_FALSE(refused.pending.answered());
  source.read_gate.Open();
  EXPECT_THAT(first.pending.Wait(), IsOk());
  EXPECT_THAT(replaced.pending.Wait(), IsOk());
  // Which of the two comes first is open; after the replace the refused one asks for what is there.
  const absl::StatusOr<LoadResult> second = refused.pending.Wait();
  if (second.ok()) {
    EXPECT_TRUE(second->already_loaded);
  } else {
    EXPECT_THAT(second, HasReason(Reason::kAdapterExists));
  }
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot adapter, registry_->Get("x"));
  EXPECT_TRUE(adapter.pinned);
  EXPECT_EQ(source.reads, 1);
}

TEST_P(LoadTest, AnotherSourceOnALoadingNameIsRefusedOnceThatIsLoaded) {
  FakeSource& a = sources_.Put("a");
  FakeContent other;
  other.text = "2";
  FakeSource& b = sources_.Put("b", other);
  a.read_gate.Close();
  Started first = StartLoad(Request("x", "a"));
  a.read_gate.AwaitVisitor();
  Started second = StartLoad(Request("x", "b"));
  EXPECT_EQ(b.opens, 0);
  a.read_gate.Open();
  EXPECT_THAT(first.pending.Wait(), IsOk());
  EXPECT_THAT(second.pending.Wait(), HasReason(Reason::kAdapterExists));
  EXPECT_EQ(b.reads, 0);
}

TEST_P(LoadTest, AnotherSourceOnALoadingNameIsLoadedWhenTheFirstFails) {
  FakeContent broken;
  broken.read_error = Error(Reason::kNonFiniteWeights, "NaN");
  FakeSource& a = sources_.Put("a", broken);
  FakeContent other;
  other.text = "2";
  sources_.Put("b", other);
  a.read_gate.Close();
  Started first = StartLoad(Request("x", "a"));
  a.read_gate.AwaitVisitor();
  Started second = StartLoad(Request("x", "b"));
  a.read_gate.Open();
  EXPECT_THAT(first.pending.Wait(), HasReason(Reason::kNonFiniteWeights));
  ASSERT_OK_AND_ASSIGN(const LoadResult result, second.pending.Wait());
  EXPECT_EQ(result.adapter.digest, DigestOf(other));
  EXPECT_EQ(result.adapter.source, "b");
  EXPECT_EQ(budget_->used(), BytesOf(other));
}

TEST_P(LoadTest, TheBaseModelOfTheRequestIsPartOfTheAdapter) {
  sources_.Put("a");
  LoadRequest request = Request("x");
  request.source.base_model = "other";
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(request));
  EXPECT_EQ(result.adapter.manifest->base_model, "other");
  EXPECT_EQ(result.adapter.public_id, "other:x");
}

TEST_P(LoadTest, AnExpectedDigestMayBeTheRevisionOrTheFilesDigest) {
  FakeSource& source = sources_.Put("a");
  LoadRequest request = Request("x");
  for (const std::string& digest :
       {DigestOf(FakeContent()).revision, DigestOf(FakeContent()).weights_sha256}) {
    request.expected_digest = digest;
    request.name += "x";
    ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(request));
    EXPECT_EQ(result.adapter.digest, DigestOf(FakeContent()));
  }
  EXPECT_EQ(source.weights_shas, 2);  // one pass each, also when it was needed for the check
}

TEST_P(LoadTest, TheFilesDigestIsTakenWhileTheAdapterServes) {
  FakeSource& source = sources_.Put("a");
  source.weights_sha_gate.Close();
  Started load = StartLoad(Request("x"));
  source.weights_sha_gate.AwaitVisitor();
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot serving, registry_->Get("x"));
  EXPECT_EQ(serving.state, AdapterState::kReady);
  EXPECT_EQ(serving.digest.revision, DigestOf(FakeContent()).revision);
  EXPECT_EQ(serving.digest.weights_sha256, "");
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
  EXPECT_FALSE(load.pending.answered());
  source.weights_sha_gate.Open();
  ASSERT_OK_AND_ASSIGN(const LoadResult result, load.pending.Wait());
  EXPECT_EQ(result.adapter.digest, DigestOf(FakeContent()));
  EXPECT_EQ(registry_->Get("x")->digest, DigestOf(FakeContent()));
}

TEST_P(LoadTest, AFilesDigestThatCannotBeTakenAnyMoreIsLeftUnknown) {
  FakeContent content;
  content.weights_sha_error = Error(Reason::kSourceChanged, "moved on");
  sources_.Put("a", content);
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Request("x")));
  EXPECT_EQ(result.adapter.digest, (ContentDigest{DigestOf(content).revision, ""}));
  LoadRequest expecting = Request("y");
  expecting.expected_digest = DigestOf(content).weights_sha256;
  EXPECT_THAT(Load(expecting), HasReason(Reason::kSourceChanged));
}

TEST_P(LoadTest, WarningsOfTheReadingAreKept) {
  FakeContent content;
  content.warnings = {"one", "two"};
  sources_.Put("a", content);
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Request("x")));
  EXPECT_THAT(result.adapter.warnings, ElementsAre("one", "two"));
  // Options alone may change without the file being read again.
  LoadRequest pinned = Replacing(Request("x"));
  pinned.pinned = true;
  ASSERT_OK_AND_ASSIGN(const LoadResult changed, Load(pinned));
  EXPECT_THAT(changed.adapter.warnings, ElementsAre("one", "two"));
  EXPECT_EQ(changed.adapter.digest, DigestOf(content));
}

struct FailingLoad {
  std::string name;
  Reason reason;
  std::function<void(FakeContent&, LoadRequest&)> arrange;
};

std::vector<FailingLoad> FailingLoads() {
  return {
      {"NoSource", Reason::kSourceNotFound,
       [](FakeContent&, LoadRequest& request) { request.source.source = "nowhere"; }},
      {"OpenError", Reason::kMalformedConfig,
       [](FakeContent& content, LoadRequest&) {
         content.open_error = Error(Reason::kMalformedConfig, "no JSON").With("file", "f");
       }},
      {"ReadError", Reason::kSourceChanged,
       [](FakeContent& content, LoadRequest&) {
         content.read_error = Error(Reason::kSourceChanged, "the file changed");
       }},
      {"NonFinite", Reason::kNonFiniteWeights,
       [](FakeContent& content, LoadRequest&) {
         content.read_error = Error(Reason::kNonFiniteWeights, "NaN");
       }},
      {"OtherDigest", Reason::kDigestMismatch,
       [](FakeContent&, LoadRequest& request) { request.expected_digest = std::string(64, '0'); }},
      {"OverBudget", Reason::kMemoryBudgetExceeded,
       [](FakeContent& content, LoadRequest&) { content.modules[0].in_features = 1 << 28; }},
      {"NoMemory", Reason::kMemoryBudgetExceeded,
       [](FakeContent& content, LoadRequest&) {
         content.while_read = [](const Cancellation&) { throw std::bad_alloc(); };
       }},
      {"Exception", Reason::kInternal,
       [](FakeContent& content, LoadRequest&) {
         content.while_read = [](const Cancellation&) { throw std::runtime_error("a bug"); };
       }},
  };
}

TEST_P(LoadTest, AFailedLoadLeavesNothingBehind) {
  sources_.Put("kept");
  ASSERT_THAT(Load(Request("kept", "kept")), IsOk());
  const int64_t used = budget_->used();
  for (const FailingLoad& failing : FailingLoads()) {
    SCOPED_TRACE(failing.name);
    FakeContent content;
    content.text = failing.name;
    LoadRequest request = Request("x");
    failing.arrange(content, request);
    sources_.Put("a", content);
    const absl::StatusOr<LoadResult> result = Load(request);
    EXPECT_THAT(result, HasReason(failing.reason));
    EXPECT_THAT(result.status(), HasErrorMetadata("adapter", "x"));
    EXPECT_THAT(Names(), ElementsAre("kept"));
    EXPECT_THAT(registry_->Get("x"), HasReason(Reason::kAdapterNotFound));
    EXPECT_EQ(budget_->used(), used);
    EXPECT_THAT(Events().back().status, HasReason(failing.reason));
    EXPECT_FALSE(Events().back().read);

    sources_.Put("a");  // the name and its public id are free again
    ASSERT_THAT(Load(Request("x")), IsOk());
    ASSERT_THAT(Unload(UnloadOf("x")), IsOk());
  }
}

TEST_P(LoadTest, AnAdapterThatDoesNotFitIsNotRead) {
  const FakeContent content;
  FakeSource& source = sources_.Put("a", content);
  Start(BytesOf(content) - 1);
  const absl::StatusOr<LoadResult> result = Load(Request("x"));
  EXPECT_THAT(result, HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_THAT(result.status(), HasErrorMetadata("needed_bytes", std::to_string(BytesOf(content))));
  EXPECT_THAT(result.status(), HasErrorMetadata("used_bytes", "0"));
  EXPECT_THAT(result.status(),
              HasErrorMetadata("budget_bytes", std::to_string(BytesOf(content) - 1)));
  EXPECT_EQ(source.reads, 0);
}

TEST_P(LoadTest, ALoadThatFitsToTheByteIsRead) {
  const FakeContent content;
  sources_.Put("a", content);
  Start(BytesOf(content));
  EXPECT_THAT(Load(Request("x")), IsOk());
  EXPECT_EQ(budget_->used(), budget_->limit());
}

TEST_P(LoadTest, TheWeightsAreNotReadBeforeTheBytesAreReserved) {
  const FakeContent content;
  FakeSource& source = sources_.Put("a", content);
  source.read_gate.Close();
  Started started = StartLoad(Request("x"));
  source.read_gate.AwaitVisitor();
  EXPECT_EQ(budget_->used(), BytesOf(content));
  source.read_gate.Open();
  EXPECT_THAT(started.pending.Wait(), IsOk());
}

TEST_P(LoadTest, AFailureReachesAllThatShareTheLoad) {
  FakeContent content;
  content.read_error = Error(Reason::kNonFiniteWeights, "tensor t has a NaN").With("tensor", "t");
  FakeSource& source = sources_.Put("a", content);
  source.read_gate.Close();
  std::vector<Started> started;
  for (int i = 0; i < 5; ++i) started.push_back(StartLoad(Request("x")));
  source.read_gate.AwaitVisitor();
  source.read_gate.Open();
  for (Started& one : started) {
    const absl::StatusOr<LoadResult> result = one.pending.Wait();
    EXPECT_THAT(result, HasReason(Reason::kNonFiniteWeights));
    EXPECT_THAT(result, HasMessage(HasSubstr("tensor t")));
    EXPECT_THAT(result.status(), HasErrorMetadata("tensor", "t"));
  }
  EXPECT_EQ(source.reads, 1);
}

}  // namespace
}  // namespace adapterd
