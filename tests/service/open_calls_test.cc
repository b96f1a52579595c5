#include "service/open_calls.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <utility>

#include "absl/time/clock.h"

namespace adapterd {
namespace {

TEST(OpenCallsTest, NobodyEntersOnceItIsClosed) {
  OpenCalls calls;
  OpenCalls::Call first;
  OpenCalls::Call second;
  EXPECT_TRUE(calls.Enter(first));
  calls.Close();
  EXPECT_FALSE(calls.Enter(second));
  EXPECT_FALSE(calls.AwaitNone(absl::Now()));
  calls.Leave(first);
  EXPECT_TRUE(calls.AwaitNone(absl::InfiniteFuture()));
  EXPECT_FALSE(calls.Enter(second));
}

TEST(OpenCallsTest, WithoutCallsNothingIsWaitedFor) {
  OpenCalls calls;
  EXPECT_TRUE(calls.AwaitNone(absl::InfinitePast()));
}

TEST(OpenCallsTest, TheWaitEndsWithTheLastCall) {
  OpenCalls calls;
  OpenCalls::Call open[8];
  for (OpenCalls::Call& call : open) ASSERT_TRUE(calls.Enter(call));
  calls.Close();
  std::thread worker([&] {
    for (OpenCalls::Call& call : open) calls.Leave(call);
  });
  EXPECT_TRUE(calls.AwaitNone(absl::InfiniteFuture()));
  worker.join();
}

TEST(OpenCallsTest, TheListIsInTheOrderOfEntryWhoeverLeaves) {
  OpenCalls calls;
  OpenCalls::Call open[5];
  for (int i = 0; i < 5; ++i) {
    open[i].request_id = std::to_string(i);
    ASSERT_TRUE(calls.Enter(open[i]));
  }
  const auto ids = [&] {
    std::string text;
    for (const OpenCalls::Call& call : calls.List()) text += call.request_id;
    return text;
  };
  EXPECT_EQ(ids(), "01234");
  for (const auto& [leaves, rest] : {std::pair(2, "0134"), {0, "134"}, {4, "13"}}) {
    calls.Leave(open[leaves]);
    EXPECT_EQ(ids(), rest);
  }
  ASSERT_TRUE(calls.Enter(open[2]));
  EXPECT_EQ(ids(), "132");
  for (const int i : {1, 3, 2}) calls.Leave(open[i]);
  EXPECT_EQ(ids(), "");
  EXPECT_TRUE(calls.AwaitNone(absl::InfinitePast()));
}

}  // namespace
}  // namespace adapterd
