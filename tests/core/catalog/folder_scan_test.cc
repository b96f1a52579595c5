#include "core/catalog/folder_scan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Key;

namespace fs = std::filesystem;

class FolderScanTest : public ::testing::Test {
 protected:
  FolderScan Scan() { return *ScanFolder(temp_ / "watched"); }

  void Write(const std::string& name, const std::string& text) {
    temp_.Write("watched/" + name, text);
  }

  void Link(const std::string& name, const std::string& target) {
    fs::create_symlink(target, temp_ / ("watched/" + name));
  }

  const TempDir temp_;
};

TEST_F(FolderScanTest, OnlyFoldersWithLegalNamesAreAdapters) {
  Write("french/adapter_config.json", "{}");
  Write("v1.2-german_x/adapter_config.json", "{}");
  Write("9/file", "");
  fs::create_directory(temp_ / "watched/empty");
  Write("README.md", "text");
  Write("-flag/file", "");
  Write("with space/file", "");
  Write("lost+found/file", "");
  Write(".hidden/adapter_config.json", "{}");
  Write("..2024_01/adapter_config.json", "{}");
  Link("linked", "french");
  Link("dangling", "nowhere");
  Link("loop", "loop");
  Link("text", "README.md");
  const FolderScan scan = Scan();
  EXPECT_THAT(scan.adapters, ElementsAre(Key("9"), Key("empty"), Key("french"), Key("linked"),
                                         Key("v1.2-german_x")));
  EXPECT_THAT(scan.misnamed, ElementsAre("-flag", "with space"));
  EXPECT_THAT(scan.watchable, Contains((temp_ / "watched").string()));
  EXPECT_THAT(scan.watchable, Contains((temp_ / "watched/french").string()));
}

TEST_F(FolderScanTest, EveryChangeThatCanMatterChangesTheFingerprintAndNothingElseDoes) {
  Write("a/adapter_config.json", "{}");
  Write("a/weights", "12345678");
  Write("a/named/weights", "abc");
  Write("blobs/one", "blob");
  Link("a/shared", "../blobs/one");
  const std::string a = temp_ / "watched/a";
  struct Case {
    const char* what;
    std::function<void()> change;
    bool changes = true;
  };
  const std::vector<Case> cases = {
      {"nothing", [] {}, false},
      {"a file that is read", [&] { ReadFile(a + "/weights"); }, false},
      {"another adapter", [&] { Write("b/weights", "1"); }, false},
      {"a longer file", [&] { Write("a/weights", "123456789"); }},
      {"a file moved in", [&] { fs::rename(temp_.Write("new", "123456789"), a + "/weights"); }},
      {"a new file", [&] { Write("a/x", "1"); }},
      {"a file gone", [&] { fs::remove(a + "/x"); }},
      {"another name", [&] { fs::rename(a + "/weights", a + "/weights2"); }},
      {"in a subfolder", [&] { Write("a/named/weights", "abcd"); }},
      {"behind a symlink", [&] { Write("blobs/one", "blob2"); }},
      {"permissions", [&] { chmod((a + "/weights2").c_str(), 0600); }},
      {"a symlink elsewhere",
       [&] {
         fs::remove(a + "/shared");
         Link("a/shared", "../blobs/two");
       }},
      {"what it leads to appears", [&] { Write("blobs/two", "blob"); }},
  };
  std::string before = Scan().adapters.at("a");
  for (const Case& test : cases) {
    test.change();
    const std::string after = Scan().adapters.at("a");
    EXPECT_EQ(after != before, test.changes) << test.what;
    before = after;
  }
}

TEST_F(FolderScanTest, ASwapOfAConfigMapIsAChangeOfEachAdapterInIt) {
  Write("..v1/french/weights", "1");
  Write("..v2/french/weights", "2");
  Link("..data", "..v1");
  Link("french", "..data/french");
  const FolderScan before = Scan();
  EXPECT_THAT(before.adapters, ElementsAre(Key("french")));
  Link("..data_tmp", "..v2");
  fs::rename(temp_ / "watched/..data_tmp", temp_ / "watched/..data");
  EXPECT_NE(Scan().adapters.at("french"), before.adapters.at("french"));
}

TEST_F(FolderScanTest, WhatIsOutOfReachIsThereAllTheSame) {
  temp_.Write("elsewhere/adapter_config.json", "{}");
  temp_.Write("secret.txt", "");
  Write("closed/adapter_config.json", "{}");
  Link("outside", temp_ / "elsewhere");
  Link("up", "../elsewhere");
  Link("file", "../secret.txt");
  EXPECT_THAT(Scan().adapters, ElementsAre(Key("closed"), Key("outside"), Key("up")));
  chmod((temp_ / "watched/closed").c_str(), 0);
  EXPECT_THAT(Scan().adapters, Contains(Key("closed")));
  chmod((temp_ / "watched/closed").c_str(), 0755);
}

TEST_F(FolderScanTest, TheRootsAreTheFolderThatWasScanned) {
  Write("a/old", "");
  temp_.Write("next/a/new", "");
  const FolderScan scan = Scan();
  fs::rename(temp_ / "watched", temp_ / "gone");
  fs::rename(temp_ / "next", temp_ / "watched");
  EXPECT_TRUE(scan.roots->OpenFolder("a")->Has("old"));
  const FolderScan after = Scan();
  EXPECT_TRUE(after.roots->OpenFolder("a")->Has("new"));
  EXPECT_NE(after.identity.inode, scan.identity.inode);
}

TEST_F(FolderScanTest, AFolderThatCannotBeListedIsAnError) {
  EXPECT_THAT(ScanFolder(temp_ / "watched"), HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(ScanFolder(temp_.Write("file", "")), HasReason(Reason::kSourceNotFound));
  fs::create_directory(temp_ / "watched");
  EXPECT_THAT(Scan().adapters, IsEmpty());
}

}  // namespace
}  // namespace adapterd
