#include "service/open_calls.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"

namespace adapterd {
namespace {

TEST(OpenCallsTest, NobodyEntersOnceItIsClosed) {
  OpenCalls calls;
  EXPECT_TRUE(calls.Enter());
  calls.Close();
  EXPECT_FALSE(calls.Enter());
  EXPECT_FALSE(calls.AwaitNone(absl::Now()));
  calls.Leave();
  EXPECT_TRUE(calls.AwaitNone(absl::InfiniteFuture()));
  EXPECT_FALSE(calls.Enter());
}

TEST(OpenCallsTest, WithoutCallsNothingIsWaitedFor) {
  OpenCalls calls;
  EXPECT_TRUE(calls.AwaitNone(absl::InfinitePast()));
}

TEST(OpenCallsTest, TheWaitEndsWithTheLastCall) {
  OpenCalls calls;
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(calls.Enter());
  calls.Close();
  std::thread worker([&] {
    for (int i = 0; i < 8; ++i) calls.Leave();
  });
  EXPECT_TRUE(calls.AwaitNone(absl::InfiniteFuture()));
  worker.join();
}

}  // namespace
}  // namespace adapterd
