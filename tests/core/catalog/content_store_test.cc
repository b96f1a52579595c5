#include "core/catalog/content_store.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <thread>

#include "tests/core/catalog/store_folder.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Key;
using ::testing::Not;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

const FileList kFiles = {{"b", "second"}, {"a", std::string("\0x", 2)}};
// printf 'adapterd-content-v1\na\0002\000%s\nb\0006\000%s\n' $(printf '\0x' | sha256sum | cut
// -c-64)
// $(printf second | sha256sum | cut -c-64) | sha256sum
constexpr char kKey[] = "9e39b3a4a83776819ae4f44fb711bc279d261a3339b44ef2ca47dca669e056e2";

std::set<std::string> Nothing() { return {}; }

class ContentStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { Reopen(); }

  // As after a crash, when `store_` was busy.
  void Reopen() {
    store_ = nullptr;
    auto store = ContentStore::Open(folder());
    ASSERT_THAT(store, IsOk());
    store_ = *std::move(store);
  }

  std::string folder() const { return dir_ / "data/store"; }
  std::map<std::string, std::string> Contents() const { return TreeOf(folder() + "/content"); }
  std::map<std::string, std::string> Incoming() const { return TreeOf(folder() + "/incoming"); }

  TempDir dir_;
  std::unique_ptr<ContentStore> store_;
};

TEST_F(ContentStoreTest, FilesAreStoredUnderAKeyThatFollowsFromThem) {
  ASSERT_OK_AND_ASSIGN(const StoredContent stored, Store(*store_, kFiles));
  EXPECT_EQ(stored.key(), kKey);
  const std::string key = kKey;
  EXPECT_THAT(Contents(), UnorderedElementsAre(Pair(key, ""), Pair(key + "/a", kFiles[1].second),
                                               Pair(key + "/b", kFiles[0].second)));
  EXPECT_THAT(Incoming(), IsEmpty());
}

TEST_F(ContentStoreTest, TheKeyDependsOnNeitherOrderNorPieces) {
  ASSERT_OK_AND_ASSIGN(const StoredContent other, Store(*store_, {kFiles[1], kFiles[0]}, 1));
  EXPECT_EQ(other.key(), kKey);
}

TEST_F(ContentStoreTest, TheKeyTellsNamesBytesAndBordersApart) {
  std::set<std::string> keys;
  const std::vector<FileList> contents = {{{"a", "xy"}},
                                          {{"a", "x"}, {"b", "y"}},
                                          {{"a", "y"}, {"b", "x"}},
                                          {{"a", "xy"}, {"b", ""}},
                                          {{"a", ""}, {"b", "xy"}},
                                          {{"b", "xy"}},
                                          {{"a", "xY"}}};
  for (const FileList& files : contents) {
    ASSERT_OK_AND_ASSIGN(const StoredContent stored, Store(*store_, files));
    keys.insert(stored.key());
  }
  EXPECT_EQ(keys.size(), contents.size());
}

TEST_F(ContentStoreTest, EqualContentIsStoredOnce) {
  ASSERT_OK_AND_ASSIGN(const StoredContent first, Store(*store_, kFiles));
  const auto before = std::filesystem::last_write_time(folder() + "/content/" + kKey + "/a");
  ASSERT_OK_AND_ASSIGN(const StoredContent second, Store(*store_, kFiles));
  EXPECT_EQ(first.key(), second.key());
  EXPECT_EQ(std::filesystem::last_write_time(folder() + "/content/" + kKey + "/a"), before);
  EXPECT_THAT(Incoming(), IsEmpty());
}

TEST_F(ContentStoreTest, ContentThatWasDamagedIsReplacedByWhatArrives) {
  ASSERT_OK_AND_ASSIGN(const StoredContent first, Store(*store_, kFiles));
  const auto right = Contents();
  const std::string content = folder() + "/content/" + kKey;
  const std::function<void()> damages[] = {
      [&] { std::ofstream(content + "/b") << "secund"; },
      [&] { std::ofstream(content + "/b") << "secon"; },
      [&] { std::filesystem::remove(content + "/a"); },
      [&] { std::ofstream(content + "/c") << "more"; },
      [&] { std::filesystem::create_directory(content + "/d"); },
  };
  for (const auto& damage : damages) {
    damage();
    ASSERT_NE(Contents(), right);
    ASSERT_OK_AND_ASSIGN(const StoredContent second, Store(*store_, kFiles));
    EXPECT_EQ(second.key(), kKey);
    EXPECT_EQ(Contents(), right);
    EXPECT_THAT(Incoming(), IsEmpty());
  }
}

TEST_F(ContentStoreTest, TheOpenerFindsContentByItsKey) {
  ASSERT_OK_AND_ASSIGN(const StoredContent stored, Store(*store_, kFiles));
  ASSERT_OK_AND_ASSIGN(const SourceFolder found, store_->roots()->OpenFolder(stored.key()));
  EXPECT_THAT(found.entries(), ElementsAre("a", "b"));
  EXPECT_THAT(found.OpenFile("b"), IsOk());
}

TEST_F(ContentStoreTest, OnlyTheOwnerMayReadIt) {
  ASSERT_OK_AND_ASSIGN(const StoredContent stored, Store(*store_, kFiles));
  const std::string content = folder() + "/content";
  for (const std::string& path : {folder(), folder() + "/incoming", content, content + "/" + kKey,
                                  content + "/" + kKey + "/a"}) {
    struct stat state;
    ASSERT_EQ(stat(path.c_str(), &state), 0) << path;
    EXPECT_EQ(state.st_mode & 0077, 0u) << path;
  }
}

TEST_F(ContentStoreTest, WhatIsNotCommittedLeavesNothing) {
  ASSERT_OK_AND_ASSIGN(auto incoming, store_->Begin(kPlenty));
  ASSERT_THAT(incoming->Append("a", "x"), IsOk());
  EXPECT_THAT(Incoming(), Not(IsEmpty()));
  incoming = nullptr;
  EXPECT_THAT(Incoming(), IsEmpty());
  EXPECT_THAT(Contents(), IsEmpty());
}

TEST_F(ContentStoreTest, WhatACrashLeftIsRemovedAndTheRestKept) {
  ASSERT_THAT(Store(*store_, kFiles), IsOk());
  dir_.Write("data/store/incoming/7/adapter_model.safetensors", "half");
  dir_.Write("data/store/incoming/stray", "x");
  Reopen();
  EXPECT_THAT(Incoming(), IsEmpty());
  EXPECT_THAT(Contents(), Contains(Key(std::string(kKey))));
  EXPECT_THAT(Store(*store_, {{"a", "after"}}), IsOk());
}

TEST_F(ContentStoreTest, AStoreInUseIsRefused) {
  const auto second = ContentStore::Open(folder());
  EXPECT_THAT(second, HasReason(Reason::kSourceUnavailable));
  EXPECT_THAT(second, HasMessage(HasSubstr("in use by another process")));
}

TEST_F(ContentStoreTest, AFolderThatCannotBeMadeIsAnError) {
  dir_.Write("file", "");
  EXPECT_THAT(ContentStore::Open(dir_ / "file/store"), HasReason(Reason::kSourceUnavailable));
  dir_.Write("data2/store", "");
  EXPECT_THAT(ContentStore::Open(dir_ / "data2/store"), HasReason(Reason::kSourceUnavailable));
}

TEST_F(ContentStoreTest, ATemporaryStoreGoesWithItsFolder) {
  const TempDir parent;
  setenv("TMPDIR", parent.path().c_str(), 1);
  absl::StatusOr<std::unique_ptr<ContentStore>> store = ContentStore::OpenTemporary();
  setenv("TMPDIR", (parent / "missing").c_str(), 1);
  const auto nowhere = ContentStore::OpenTemporary();
  unsetenv("TMPDIR");
  ASSERT_THAT(store, IsOk());
  EXPECT_TRUE((*store)->temporary());
  {
    ASSERT_OK_AND_ASSIGN(const StoredContent stored, Store(**store, kFiles));
    EXPECT_EQ(stored.key(), kKey);
    EXPECT_THAT(TreeOf(parent.path()), Not(IsEmpty()));
  }
  *store = nullptr;
  EXPECT_THAT(TreeOf(parent.path()), IsEmpty());
  EXPECT_THAT(nowhere, HasReason(Reason::kSourceUnavailable));
}

TEST_F(ContentStoreTest, FileNamesAreNoPaths) {
  const std::vector<std::string> bad = {"",
                                        ".",
                                        "..",
                                        "/",
                                        "a/b",
                                        "/etc/passwd",
                                        "../a",
                                        "a/",
                                        std::string("a\0b", 3),
                                        std::string(256, 'n')};
  for (const std::string& name : bad) {
    ASSERT_OK_AND_ASSIGN(const auto incoming, store_->Begin(kPlenty));
    const absl::Status status = incoming->Append(name, "x");
    EXPECT_THAT(status, HasReason(Reason::kInvalidField)) << name;
    EXPECT_THAT(status, HasErrorMetadata("field", "chunk.file_name")) << name;
    EXPECT_THAT(status, HasMessage(HasSubstr("no path, found \""))) << name;
  }
  const FileList good = {{"...", "x"}, {"..a", "x"}, {"a b\n", "x"}, {std::string(255, 'n'), "x"}};
  EXPECT_THAT(Store(*store_, good), IsOk());
}

TEST_F(ContentStoreTest, AFileThatWasEndedCannotBeContinued) {
  ASSERT_OK_AND_ASSIGN(const auto incoming, store_->Begin(kPlenty));
  ASSERT_THAT(incoming->Append("a", "1"), IsOk());
  ASSERT_THAT(incoming->Append("a", "2"), IsOk());
  ASSERT_THAT(incoming->Append("b", ""), IsOk());
  const absl::Status status = incoming->Append("a", "3");
  EXPECT_THAT(status, HasReason(Reason::kInvalidField));
  EXPECT_THAT(status, HasMessage(HasSubstr("\"a\" was ended by another one")));
}

TEST_F(ContentStoreTest, FilesAreLimitedInNumber) {
  ASSERT_OK_AND_ASSIGN(const auto incoming, store_->Begin(kPlenty));
  for (size_t i = 0; i < kMaxUploadFiles; ++i) {
    ASSERT_THAT(incoming->Append(fmt::format("file{}", i), "x"), IsOk());
  }
  const absl::Status status = incoming->Append("more", "x");
  EXPECT_THAT(status, HasReason(Reason::kInvalidField));
  EXPECT_THAT(status, HasMessage(HasSubstr("at most 64")));
}

TEST_F(ContentStoreTest, BytesAreLimitedOverAllFiles) {
  ASSERT_OK_AND_ASSIGN(auto incoming, store_->Begin(5));
  ASSERT_THAT(incoming->Append("a", "123"), IsOk());
  ASSERT_THAT(incoming->Append("b", "45"), IsOk());
  const absl::Status status = incoming->Append("b", "6");
  EXPECT_THAT(status, HasReason(Reason::kMessageTooLarge));
  EXPECT_THAT(status, HasErrorMetadata("expected", "5"));
  EXPECT_THAT(status, HasErrorMetadata("actual", "6"));
  EXPECT_THAT(status, HasMessage(HasSubstr("6 bytes so far, over the limit of 5")));
  incoming = nullptr;
  EXPECT_THAT(Incoming(), IsEmpty());
}

TEST_F(ContentStoreTest, NoFileIsNoContent) {
  EXPECT_THAT(Store(*store_, {}), HasReason(Reason::kInvalidField));
  EXPECT_THAT(Contents(), IsEmpty());
}

TEST_F(ContentStoreTest, CollectionKeepsWhatIsWantedOrReferenced) {
  ASSERT_OK_AND_ASSIGN(StoredContent referenced, Store(*store_, {{"a", "referenced"}}));
  std::string wanted;
  {
    ASSERT_OK_AND_ASSIGN(const StoredContent stored, Store(*store_, {{"a", "wanted"}}));
    wanted = stored.key();
  }
  ASSERT_THAT(Store(*store_, {{"a", "12345"}, {"b", "678"}}), IsOk());
  dir_.Write("data/store/content/README", "an operator's");

  const auto collect = [&] {
    return store_->Collect([&] { return std::set<std::string>{wanted}; });
  };
  ASSERT_OK_AND_ASSIGN(const ContentStore::Collected first, collect());
  EXPECT_EQ(first.contents, 1);
  EXPECT_EQ(first.bytes, 8);
  EXPECT_THAT(Contents(),
              UnorderedElementsAre(Key(wanted), Key(wanted + "/a"), Key(referenced.key()),
                                   Key(referenced.key() + "/a"), Key(std::string("README"))));
  EXPECT_THAT(Incoming(), IsEmpty());

  referenced = StoredContent();
  ASSERT_OK_AND_ASSIGN(const ContentStore::Collected second, collect());
  EXPECT_EQ(second.contents, 1);
  ASSERT_OK_AND_ASSIGN(const ContentStore::Collected third, collect());
  EXPECT_EQ(third.contents, 0);
  EXPECT_EQ(third.bytes, 0);
}

TEST_F(ContentStoreTest, TheLastReferenceCounts) {
  ASSERT_OK_AND_ASSIGN(StoredContent first, Store(*store_, kFiles));
  ASSERT_OK_AND_ASSIGN(StoredContent second, Store(*store_, kFiles));
  StoredContent moved = std::move(first);
  second = StoredContent();
  ASSERT_THAT(store_->Collect(Nothing), IsOk());
  EXPECT_THAT(Contents(), Not(IsEmpty()));
  moved = StoredContent();
  ASSERT_THAT(store_->Collect(Nothing), IsOk());
  EXPECT_THAT(Contents(), IsEmpty());
}

// A load that ends while a collection runs: whoever is asked what is wanted knows of it by then.
TEST_F(ContentStoreTest, AReferenceThatGoesDuringACollectionStillProtects) {
  ASSERT_OK_AND_ASSIGN(StoredContent stored, Store(*store_, kFiles));
  const std::string key = stored.key();
  ASSERT_THAT(Store(*store_, {{"a", "of nobody"}}), IsOk());
  ASSERT_OK_AND_ASSIGN(const ContentStore::Collected collected, store_->Collect([&] {
    stored = StoredContent();
    return std::set<std::string>();
  }));
  EXPECT_EQ(stored.key(), "");
  EXPECT_EQ(collected.contents, 1);
  EXPECT_THAT(Contents(), Contains(Key(key)));
}

// Whoever knows what is wanted has to look at all there is.
TEST_F(ContentStoreTest, NobodyIsAskedWhatIsWantedWhenNothingCouldGo) {
  int asked = 0;
  const auto ask = [&asked] {
    ++asked;
    return std::set<std::string>();
  };
  ASSERT_THAT(store_->Collect(ask), IsOk());
  {
    ASSERT_OK_AND_ASSIGN(const StoredContent stored, Store(*store_, kFiles));
    ASSERT_THAT(store_->Collect(ask), IsOk());
    EXPECT_EQ(asked, 0);
  }
  ASSERT_THAT(store_->Collect(ask), IsOk());
  EXPECT_EQ(asked, 1);
  EXPECT_THAT(Contents(), IsEmpty());
}

TEST_F(ContentStoreTest, UploadsAndCollectionsAtOnceLoseNothing) {
  constexpr int kRounds = 100;
  std::vector<std::thread> threads;
  threads.reserve(2);
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([this] {
      for (int i = 0; i < kRounds; ++i) {
        const auto stored = Store(*store_, kFiles);
        ASSERT_THAT(stored, IsOk());
        EXPECT_THAT(store_->roots()->OpenFolder(stored->key()), IsOk());
      }
    });
  }
  for (int i = 0; i < kRounds; ++i) EXPECT_THAT(store_->Collect(Nothing), IsOk());
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(store_->Collect(Nothing), IsOk());
  EXPECT_THAT(TreeOf(folder()), UnorderedElementsAre(Key("content"), Key("incoming")));
}

}  // namespace
}  // namespace adapterd
