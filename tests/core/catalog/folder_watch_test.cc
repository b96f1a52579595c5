#include "core/catalog/folder_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "tests/core/catalog/fake_registry.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

namespace fs = std::filesystem;

constexpr auto kPatience = std::chrono::seconds(50);

// Polls: what another thread does on its own time has no moment to wait for.
bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

class FolderWatchTest : public ::testing::Test {
 protected:
  FolderWatchTest() { fs::create_directory(temp_ / "watched"); }

  // `period` is what a test without events waits for, or so long that only events can help.
  void Start(absl::Duration period) {
    FolderOptions options;
    options.path = temp_ / "watched";
    options.period = period;
    options.settle = absl::Milliseconds(20);
    auto roots = std::make_shared<const SourceRoots>(*SourceRoots::Open({{"", options.path}}));
    watch_ = *FolderWatch::Start(options, registry_.Actions(),
                                 std::make_shared<RenewableRoots>(std::move(roots)));
  }

  const TempDir temp_;
  FakeRegistry registry_;
  std::unique_ptr<FolderWatch> watch_;
};

TEST_F(FolderWatchTest, EventsLeadToScansLongBeforeThePeriodEnds) {
  temp_.Write("watched/a/weights", "1");
  Start(absl::Hours(1));
  watch_->AwaitFirstLoads();
  EXPECT_THAT(registry_.Names(), ElementsAre("a"));
  temp_.Write("watched/b/weights", "1");
  EXPECT_TRUE(Eventually([&] { return registry_.Names().size() == 2; }));
  temp_.Write("watched/a/weights", "12");
  EXPECT_TRUE(Eventually([&] { return registry_.loads().size() == 3; }));
  fs::remove_all(temp_ / "watched/a");
  EXPECT_TRUE(Eventually([&] { return registry_.Names().size() == 1; }));
}

TEST_F(FolderWatchTest, WithoutEventsThePeriodDoes) {
  Start(absl::Milliseconds(5));
  watch_->AwaitFirstLoads();
  // Another folder under the same path: the one that is heard of is elsewhere.
  temp_.Write("next/a/weights", "1");
  fs::rename(temp_ / "watched", temp_ / "old");
  fs::rename(temp_ / "next", temp_ / "watched");
  EXPECT_TRUE(Eventually([&] { return registry_.Names().size() == 1; }));
}

TEST_F(FolderWatchTest, TheEndDoesNotWaitForLoadsThatHang) {
  registry_.Hold(true);
  temp_.Write("watched/a/weights", "1");
  Start(absl::Hours(1));
  EXPECT_TRUE(Eventually([&] { return registry_.loads().size() == 1; }));
  watch_.reset();
  EXPECT_THAT(registry_.Names(), IsEmpty());
  EXPECT_EQ(registry_.FinishAll(), 0U);
}

}  // namespace
}  // namespace adapterd
