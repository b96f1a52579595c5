#include "core/catalog/folder_events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class FolderEventsTest : public ::testing::Test {
 protected:
  // What happened before is heard at once, so that no test has to wait.
  bool Changed() { return events_->Wait(absl::ZeroDuration()).changed; }

  const TempDir temp_;
  const std::unique_ptr<FolderEvents> events_ = *FolderEvents::Create();
};

TEST_F(FolderEventsTest, HearsOfFoldersThatAreWatchedAndNoOthers) {
  std::filesystem::create_directories(temp_ / "a");
  std::filesystem::create_directories(temp_ / "b");
  EXPECT_THAT(events_->Watch({temp_ / "a", temp_ / "b", temp_ / "missing"}), IsOk());
  EXPECT_FALSE(Changed());
  temp_.Write("a/x", "1");
  EXPECT_TRUE(Changed());
  EXPECT_FALSE(Changed());
  ReadFile(temp_ / "a/x");
  EXPECT_FALSE(Changed());
  std::filesystem::rename(temp_ / "a/x", temp_ / "b/x");
  EXPECT_TRUE(Changed());
  EXPECT_THAT(events_->Watch({temp_ / "a"}), IsOk());
  temp_.Write("b/x", "2");
  EXPECT_FALSE(Changed());
  temp_.Write("a/x", "2");
  EXPECT_TRUE(Changed());
  std::filesystem::remove_all(temp_ / "a");
  EXPECT_TRUE(Changed());
}

TEST_F(FolderEventsTest, FollowsSymlinks) {
  temp_.Write("target/x", "1");
  std::filesystem::create_directory_symlink("target", temp_ / "link");
  EXPECT_THAT(events_->Watch({temp_ / "link"}), IsOk());
  temp_.Write("target/y", "1");
  EXPECT_TRUE(Changed());
}

TEST_F(FolderEventsTest, KnowsWhichFoldersHoldFilesThatAreStillBeingWritten) {
  const std::string a = temp_ / "a";
  std::filesystem::create_directories(a);
  std::filesystem::create_directories(temp_ / "b");
  std::filesystem::create_directory_symlink("a", temp_ / "link");
  EXPECT_THAT(events_->Watch({a, temp_ / "b", temp_ / "link"}), IsOk());
  std::ofstream one(a + "/one");
  std::ofstream two(a + "/two");
  EXPECT_TRUE(Changed());
  EXPECT_THAT(events_->being_written(), IsEmpty()) << "nothing is written yet";
  one << "1" << std::flush;
  two << "2" << std::flush;
  EXPECT_TRUE(Changed());
  EXPECT_THAT(events_->being_written(), ElementsAre(a, (temp_ / "link").string()));
  one.close();
  EXPECT_TRUE(Changed());
  EXPECT_THAT(events_->being_written(), SizeIs(2));
  std::filesystem::remove(a + "/two");
  EXPECT_TRUE(Changed());
  EXPECT_THAT(events_->being_written(), IsEmpty());
  two << "more" << std::flush;
  EXPECT_THAT(events_->Watch({temp_ / "b"}), IsOk());
  Changed();
  EXPECT_THAT(events_->being_written(), IsEmpty());
}

TEST_F(FolderEventsTest, AWakeEndsTheNextWaitOnce) {
  events_->Wake();
  events_->Wake();
  EXPECT_TRUE(events_->Wait(absl::InfiniteDuration()).woken);
  EXPECT_FALSE(events_->Wait(absl::ZeroDuration()).woken);
  std::thread other([&] { events_->Wake(); });
  EXPECT_TRUE(events_->Wait(absl::InfiniteDuration()).woken);
  other.join();
}

}  // namespace
}  // namespace adapterd
