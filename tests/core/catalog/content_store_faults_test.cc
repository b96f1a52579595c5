// Every call to the disk fails once, in every way that it can.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>

#include "tests/core/catalog/store_folder.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Key;
using ::testing::UnorderedElementsAre;

// The real disk, but for one call.
class FaultyDisk final : public Disk {
 public:
  // The call with this number, from zero, fails with `error`; later ones work again.
  void FailAt(int call, int error) {
    calls_ = 0;
    failing_ = call;
    error_ = error;
  }
  void FailNever() { failing_ = -1; }
  int calls() const { return calls_; }
  void WriteAtMost(size_t bytes) { write_limit_ = bytes; }

  int MakeFolder(int parent, const std::string& name) override {
    return Fails() ? -error_ : Disk::MakeFolder(parent, name);
  }
  int OpenFolder(int parent, const std::string& name) override {
    return Fails() ? -error_ : Disk::OpenFolder(parent, name);
  }
  int CreateFile(int folder, const std::string& name) override {
    return Fails() ? -error_ : Disk::CreateFile(folder, name);
  }
  // One that fails has written the first byte: a full disk shows in the middle.
  int64_t Write(int file, std::string_view bytes) override {
    if (!Fails()) return Disk::Write(file, bytes.substr(0, write_limit_));
    Disk::Write(file, bytes.substr(0, 1));
    return -error_;
  }
  int Sync(int file_or_folder) override { return Fails() ? -error_ : Disk::Sync(file_or_folder); }
  int Rename(int from_folder, const std::string& from, int to_folder,
             const std::string& to) override {
    return Fails() ? -error_ : Disk::Rename(from_folder, from, to_folder, to);
  }

 private:
  bool Fails() { return calls_++ == failing_; }

  int calls_ = 0;
  int failing_ = -1;
  int error_ = 0;
  size_t write_limit_ = std::numeric_limits<size_t>::max();
};

struct Fault {
  int error;
  Reason reason;
};

const Fault kFaults[] = {{ENOSPC, Reason::kStorageFull},
                         {EDQUOT, Reason::kStorageFull},
                         {EIO, Reason::kSourceUnavailable},
                         {EROFS, Reason::kSourceUnavailable},
                         {EMFILE, Reason::kSourceUnavailable}};

const FileList kFiles = {{"adapter_config.json", "{}"}, {"adapter_model.safetensors", "12345678"}};

class ContentStoreFaultsTest : public ::testing::Test {
 protected:
  std::string folder() const { return dir_ / "data/store"; }
  std::unique_ptr<ContentStore> Open() { return ContentStore::Open(folder(), disk_).value(); }
  void ExpectEmpty() {
    EXPECT_THAT(TreeOf(folder()), UnorderedElementsAre(Key("content"), Key("incoming")));
  }

  TempDir dir_;
  std::shared_ptr<FaultyDisk> disk_ = std::make_shared<FaultyDisk>();
};

TEST_F(ContentStoreFaultsTest, NoFailedStepOfAnUploadLeavesAnything) {
  const auto store = Open();
  // MakeFolder, OpenFolder; for each file CreateFile, 3 or 2 Writes, Sync; Sync, Rename, Sync.
  constexpr int kSteps = 2 + (1 + 1 + 1) + (1 + 2 + 1) + 3;
  for (const Fault& fault : kFaults) {
    for (int step = 0; step < kSteps; ++step) {
      SCOPED_TRACE(std::string(std::strerror(fault.error)) + " at step " + std::to_string(step));
      disk_->FailAt(step, fault.error);
      const auto stored = Store(*store, kFiles, 4);
      EXPECT_THAT(stored, HasReason(fault.reason));
      EXPECT_THAT(stored, HasMessage(HasSubstr(std::strerror(fault.error))));
      ExpectEmpty();
    }
  }
  disk_->FailAt(kSteps, EIO);
  EXPECT_THAT(Store(*store, kFiles, 4), IsOk());
  EXPECT_EQ(disk_->calls(), kSteps);
}

TEST_F(ContentStoreFaultsTest, AFailedCommitOfContentThatIsThereLeavesIt) {
  const auto store = Open();
  ASSERT_OK_AND_ASSIGN(const StoredContent stored, Store(*store, kFiles));
  const auto before = TreeOf(folder());
  for (int step = 0;; ++step) {
    disk_->FailAt(step, EIO);
    const auto again = Store(*store, kFiles);
    if (again.ok()) break;
    EXPECT_EQ(TreeOf(folder()), before) << step;
  }
  EXPECT_EQ(TreeOf(folder()), before);
}

TEST_F(ContentStoreFaultsTest, AFailedReplaceLeavesTheDamagedOneOrTheNewOne) {
  const auto store = Open();
  ASSERT_OK_AND_ASSIGN(const StoredContent stored, Store(*store, kFiles));
  const auto right = TreeOf(folder());
  const std::string file = folder() + "/content/" + stored.key() + "/" + kFiles[0].first;
  std::ofstream(file) << "damaged";
  const auto damaged = TreeOf(folder());
  for (int step = 0;; ++step) {
    disk_->FailAt(step, EIO);
    const auto again = Store(*store, kFiles);
    if (again.ok()) break;
    EXPECT_THAT(TreeOf(folder()), AnyOf(damaged, right)) << step;
  }
  EXPECT_EQ(TreeOf(folder()), right);
}

TEST_F(ContentStoreFaultsTest, ShortWritesAreContinued) {
  const auto store = Open();
  ASSERT_OK_AND_ASSIGN(const StoredContent whole, Store(*store, kFiles));
  disk_->WriteAtMost(3);
  const FileList other = {{"adapter_model.safetensors", "0123456789"}};
  ASSERT_OK_AND_ASSIGN(const StoredContent stored, Store(*store, other));
  EXPECT_EQ(ReadFile(folder() + "/content/" + stored.key() + "/" + other[0].first),
            other[0].second);
  ASSERT_OK_AND_ASSIGN(const StoredContent same, Store(*store, kFiles));
  EXPECT_EQ(same.key(), whole.key());
}

TEST_F(ContentStoreFaultsTest, AWriteThatWritesNothingIsAnError) {
  const auto store = Open();
  disk_->WriteAtMost(0);
  EXPECT_THAT(Store(*store, kFiles), HasReason(Reason::kSourceUnavailable));
  ExpectEmpty();
}

TEST_F(ContentStoreFaultsTest, NoFailedStepOfAnOpeningStandsInTheWayOfTheNext) {
  for (const Fault& fault : kFaults) {
    for (int step = 0;; ++step) {
      disk_->FailAt(step, fault.error);
      const auto store = ContentStore::Open(folder(), disk_);
      if (store.ok()) {
        EXPECT_EQ(step, 7);  // three folders made and opened, one synced
        disk_->FailNever();
        break;
      }
      EXPECT_THAT(store, HasReason(fault.reason)) << step;
    }
  }
  EXPECT_THAT(Store(*Open(), kFiles), IsOk());
}

TEST_F(ContentStoreFaultsTest, WhatACollectionCannotRemoveStaysWhole) {
  const auto store = Open();
  for (const auto& files : {kFiles, FileList{{"a", "1"}}}) {
    ASSERT_THAT(Store(*store, files), IsOk());
  }
  const auto nothing = [] { return std::set<std::string>(); };
  disk_->FailAt(0, EIO);
  EXPECT_THAT(store->Collect(nothing), HasReason(Reason::kSourceUnavailable));
  EXPECT_THAT(TreeOf(folder() + "/incoming"), IsEmpty());
  ASSERT_OK_AND_ASSIGN(const ContentStore::Collected rest, store->Collect(nothing));
  EXPECT_EQ(rest.contents, 1);  // the other one went although the first could not
  ExpectEmpty();
}

// Until the folder is known to be gone from its key, no file of it may go.
TEST_F(ContentStoreFaultsTest, NothingIsDeletedBeforeItsRemovalIsOnDisk) {
  auto store = Open();
  ASSERT_THAT(Store(*store, kFiles), IsOk());
  disk_->FailAt(1, EIO);
  EXPECT_THAT(store->Collect([] { return std::set<std::string>(); }),
              HasReason(Reason::kSourceUnavailable));
  size_t files = 0;
  for (const auto& [path, bytes] : TreeOf(folder() + "/incoming")) files += bytes.empty() ? 0 : 1;
  EXPECT_EQ(files, kFiles.size());
  store = nullptr;
  store = Open();
  ExpectEmpty();
}

}  // namespace
}  // namespace adapterd
