#include "service/debug_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace adapterd {
namespace {

using Json = nlohmann::json;

TEST(DebugPagesTest, CallsAreCountedByMethodAndTheOldestAreListed) {
  OpenCalls calls;
  std::vector<OpenCalls::Call> open(kDebugCalls + 2);
  for (size_t i = 0; i < open.size(); ++i) {
    open[i] = {"service", i == 0 ? "Slow" : "Quick", "id-" + std::to_string(i),
               absl::FromUnixSeconds(static_cast<int64_t>(i))};
    ASSERT_TRUE(calls.Enter(open[i]));
  }
  const Json page = Json::parse(CallsJson(calls, absl::FromUnixSeconds(1000)));
  EXPECT_EQ(page["open"], kDebugCalls + 2);
  EXPECT_EQ(page["methods"],
            Json::parse(R"([{"method": "service/Quick", "open": 101, "oldest_seconds": 999.0},
                            {"method": "service/Slow", "open": 1, "oldest_seconds": 1000.0}])"));
  ASSERT_EQ(page["oldest"].size(), kDebugCalls);
  EXPECT_EQ(page["oldest"][1],
            Json::parse(R"({"method": "service/Quick", "request_id": "id-1", "seconds": 999.0})"));
}

TEST(DebugPagesTest, WhatClientsChoseCannotBreakOut) {
  OpenCalls calls;
  OpenCalls::Call call{"s", "M", "\"}<script>\xff", absl::UnixEpoch()};
  ASSERT_TRUE(calls.Enter(call));
  const Json page = Json::parse(CallsJson(calls, absl::UnixEpoch()));
  EXPECT_EQ(page["oldest"].size(), 1);
}

TEST(DebugPagesTest, PoolsTellThreadsAndQueues) {
  const ThreadPool pool("test", 2);
  EXPECT_EQ(Json::parse(PoolsJson({{"test", &pool}})),
            Json::parse(R"({"pools": [{"pool": "test", "threads": 2, "queued": 0}]})"));
}

}  // namespace
}  // namespace adapterd
