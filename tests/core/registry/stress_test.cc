// Many threads at once. What they do depends on chance only in its order.
#include <random>
#include <thread>

#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::AnyOf;
using ::testing::IsEmpty;

using StressTest = RegistryTest;
INSTANTIATE_TEST_SUITE_P(Threads, StressTest, ::testing::Values(1, 4), ThreadsName);

// Every reason that a right registry may give to somebody whom others get ahead of.
auto IsAnAnswer() {
  return AnyOf(IsOk(), HasReason(Reason::kAdapterExists), HasReason(Reason::kAdapterNotFound),
               HasReason(Reason::kMemoryBudgetExceeded), HasReason(Reason::kRevisionMismatch),
               HasReason(Reason::kNonFiniteWeights), StatusIs(absl::StatusCode::kCancelled));
}

TEST_P(StressTest, ConcurrentUseEndsWithEveryByteGivenBack) {
  constexpr int kThreads = 8;
  constexpr int kSteps = 300;
  constexpr int kSources = 4;
  const std::string names[] = {"x", "y", "z"};
  for (int i = 0; i < kSources; ++i) {
    FakeContent content;
    content.text = std::to_string(i);
    content.changed_ns = 1 + i;
    content.modules[0].rank = 1 + i;
    if (i == 3) content.read_error = Error(Reason::kNonFiniteWeights, "NaN");
    sources_.Put(std::to_string(i), content);
  }
  FakeContent largest;
  largest.modules[0].rank = 3;
  Start(4 * BytesOf(largest));  // now and then too little

  const auto work = [&](int seed) {
    std::mt19937 random(seed);
    const auto pick = [&](int n) { return static_cast<int>(random() % n); };
    for (int step = 0; step < kSteps; ++step) {
      const std::string& name = names[pick(3)];
      switch (pick(5)) {
        case 0:
        case 1: {
          LoadRequest request = Request(name, std::to_string(pick(kSources)));
          request.replace = pick(2) == 0;
          Started load = StartLoad(request);
          if (pick(4) == 0) registry_->Cancel(load.ticket);
          EXPECT_THAT(load.pending.Wait(), IsAnAnswer());
          break;
        }
        case 2: {
          UnloadRequest request = UnloadOf(name);
          request.wait = pick(2) == 0;
          EXPECT_THAT(Unload(request), IsAnAnswer());
          break;
        }
        case 3: {
          const std::string& other = names[pick(3)];
          StartedAcquire acquire = StartAcquire({{name, ""}, {other, ""}});
          if (pick(4) == 0) registry_->Cancel(acquire.ticket);
          const absl::StatusOr<Handles> handles = acquire.pending.Wait();
          EXPECT_THAT(handles.status(), IsAnAnswer());
          if (!handles.ok()) break;
          EXPECT_EQ((*handles)[0]->revision().size(), 64u);
          EXPECT_THAT((*handles)[0]->Pair(0, 0, DType::kF32).status(), IsAnAnswer());
          break;
        }
        default:
          EXPECT_LE(registry_->List({}).adapters.size(), 3u);
          EXPECT_THAT(registry_->Get(name).status(), IsAnAnswer());
          EXPECT_LE(budget_->used(), budget_->limit());
      }
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back(work, t);
  for (std::thread& thread : threads) thread.join();

  for (const std::string& name : names) EXPECT_THAT(Unload(UnloadOf(name)).status(), IsAnAnswer());
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(StressTest, AReplaceInUseNeverShowsHalfOfEachRevision) {
  // Rank tells the revision: whoever holds a handle must see both agree.
  FakeContent contents[2];
  for (int i = 0; i < 2; ++i) {
    contents[i].text = std::to_string(i);
    contents[i].changed_ns = 1 + i;
    contents[i].modules[0].rank = 1 + i;
    sources_.Put(std::to_string(i), contents[i]);
  }
  ASSERT_THAT(Load(Request("x", "0")), IsOk());
  std::atomic<bool> done{false};
  std::vector<std::thread> readers;
  for (int t = 0; t < 3; ++t) {
    readers.emplace_back([&] {
      while (!done) {
        const absl::StatusOr<Handles> handles = Acquire({{"x", ""}, {"x", ""}});
        ASSERT_THAT(handles.status(), IsOk());
        const AdapterHandle& handle = (*handles)[0];
        EXPECT_EQ(&*handle, &*(*handles)[1]);  // one request, one revision
        const int i = static_cast<int>(handle->manifest().modules[0].rank) - 1;
        EXPECT_EQ(handle->revision(), DigestOf(contents[i]).revision);
        EXPECT_EQ(handle->Pair(0, 0, DType::kF32).value()->shape().rank, i + 1);
      }
    });
  }
  for (int i = 1; i <= 200; ++i) {
    EXPECT_THAT(Load(Replacing(Request("x", std::to_string(i % 2)))), IsOk());
  }
  done = true;
  for (std::thread& thread : readers) thread.join();
  ASSERT_OK_AND_ASSIGN(const UnloadResult unloaded, Unload(UnloadOf("x")));
  EXPECT_TRUE(unloaded.freed);
  EXPECT_EQ(budget_->used(), 0);
}

}  // namespace
}  // namespace adapterd
