// A folder that appears at once, whatever fails on the way.
#include "core/merge/output_folder.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>

#include "core/base/error.h"
#include "core/base/status_macros.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

namespace fs = std::filesystem;

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::StartsWith;
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
  int calls() const { return calls_; }
  bool HasSynced(const fs::path& path) const {
    struct stat state;
    return stat(path.c_str(), &state) == 0 && synced_.contains(state.st_ino);
  }

  int MakeFolder(int parent, const std::string& name) override {
    return Fails() ? -error_ : Disk::MakeFolder(parent, name);
  }
  int OpenFolder(int parent, const std::string& name) override {
    return Fails() ? -error_ : Disk::OpenFolder(parent, name);
  }
  int CreateFile(int folder, const std::string& name) override {
    return Fails() ? -error_ : Disk::CreateFile(folder, name);
  }
  int Allocate(int file, int64_t bytes) override {
    return Fails() ? -error_ : Disk::Allocate(file, bytes);
  }
  // One that fails has written the first byte: a full disk shows in the middle. Others write half.
  int64_t WriteAt(int file, int64_t offset, std::span<const std::byte> bytes) override {
    const bool fails = Fails();
    const size_t count = fails ? 1 : (bytes.size() + 1) / 2;
    const int64_t written = Disk::WriteAt(file, offset, bytes.first(count));
    return fails ? -error_ : written;
  }
  int Sync(int file_or_folder) override {
    struct stat state;
    if (fstat(file_or_folder, &state) == 0) synced_.insert(state.st_ino);
    return Fails() ? -error_ : Disk::Sync(file_or_folder);
  }
  int RenameNew(int from_folder, const std::string& from, int to_folder,
                const std::string& to) override {
    return Fails() ? -error_ : Disk::RenameNew(from_folder, from, to_folder, to);
  }

 private:
  bool Fails() { return calls_++ == failing_; }

  int calls_ = 0;
  int failing_ = -1;
  int error_ = 0;
  std::set<ino_t> synced_;
};

class OutputFolderTest : public ::testing::Test {
 protected:
  OutputFolderTest() { fs::create_directory(dir_ / "source"); }

  absl::StatusOr<std::unique_ptr<OutputFolder>> Begin(const std::string& output) {
    return OutputFolder::Begin(roots_, output, roots_, "source", disk_);
  }
  absl::Status WriteAll(const std::string& output) {
    ASSIGN_OR_RETURN(const auto folder, Begin(output));
    RETURN_IF_ERROR(folder->WriteFile("b", "bytes"));
    RETURN_IF_ERROR(folder->WriteFile("a", ""));
    EXPECT_THAT(folder->files(), ElementsAre("a", "b"));
    return folder->Commit();
  }
  std::vector<std::string> Entries(const std::string& path = ".") const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir_ / path)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }
  std::string ContentOf(const std::string& path) const {
    std::ifstream file(dir_ / path);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  TempDir dir_;
  const SourceRoots roots_ = SourceRoots::Open({{"", dir_.path().string()}}).value();
  const std::shared_ptr<FaultyDisk> disk_ = std::make_shared<FaultyDisk>();
};

TEST_F(OutputFolderTest, AppearsWithTheFoldersAboveItWhenItIsCommitted) {
  ASSERT_OK_AND_ASSIGN(const auto folder, Begin("x/y/z"));
  ASSERT_THAT(folder->WriteFile("file", "bytes"), IsOk());
  EXPECT_FALSE(fs::exists(dir_ / "x"));
  ASSERT_THAT(folder->Commit(), IsOk());
  EXPECT_THAT(Entries(), UnorderedElementsAre("source", "x"));
  EXPECT_EQ(ContentOf("x/y/z/file"), "bytes");
}

TEST_F(OutputFolderTest, EveryFolderThatItBringsIsSynced) {
  ASSERT_OK_AND_ASSIGN(const auto folder, Begin("x/y/z/out"));
  ASSERT_THAT(folder->WriteFile("file", "bytes"), IsOk());
  ASSERT_THAT(folder->Commit(), IsOk());
  for (const char* path : {".", "x", "x/y", "x/y/z", "x/y/z/out", "x/y/z/out/file"}) {
    EXPECT_TRUE(disk_->HasSynced(dir_ / path)) << path;
  }
}

TEST_F(OutputFolderTest, IsGoneWithoutACommit) {
  { ASSERT_OK_AND_ASSIGN(const auto folder, Begin("x/y")); }
  EXPECT_THAT(Entries(), ElementsAre("source"));
}

TEST_F(OutputFolderTest, EveryCallThatFailsLeavesNothing) {
  const struct {
    int error;
    Reason reason;
  } faults[] = {{ENOSPC, Reason::kStorageFull},
                {EDQUOT, Reason::kStorageFull},
                {EFBIG, Reason::kStorageFull},
                {EIO, Reason::kSourceUnavailable}};
  disk_->FailAt(-1, 0);
  ASSERT_THAT(WriteAll("counted/out"), IsOk());
  const int calls = disk_->calls();
  ASSERT_GE(calls, 12);
  fs::remove_all(dir_ / "counted");
  for (const auto& fault : faults) {
    // The last call syncs the folder that the output has already moved to.
    for (int call = 0; call + 1 < calls; ++call) {
      SCOPED_TRACE(testing::Message() << "call " << call << " error " << fault.error);
      disk_->FailAt(call, fault.error);
      EXPECT_THAT(WriteAll("x/out"), HasReason(fault.reason));
      EXPECT_THAT(Entries(), ElementsAre("source"));
    }
  }
}

TEST_F(OutputFolderTest, TwoOutputsBelowAFolderThatNeitherFoundBothAppear) {
  ASSERT_OK_AND_ASSIGN(const auto first, Begin("x/first"));
  ASSERT_OK_AND_ASSIGN(const auto second, Begin("x/second"));
  ASSERT_OK_AND_ASSIGN(const auto same, Begin("x/first"));
  ASSERT_THAT(first->WriteFile("file", "first"), IsOk());
  EXPECT_THAT(first->Commit(), IsOk());
  EXPECT_THAT(second->Commit(), IsOk());
  EXPECT_THAT(same->Commit(), HasReason(Reason::kOutputExists));
  EXPECT_THAT(Entries("x"), UnorderedElementsAre("first", "second"));
  EXPECT_EQ(ContentOf("x/first/file"), "first");
}

TEST_F(OutputFolderTest, AStartRemovesWhatNobodyHolds) {
  fs::create_directories(dir_ / ".adapterd-merge-dead" / "x");
  std::ofstream(dir_ / ".adapterd-merge-dead" / "x" / "file") << "half";
  std::ofstream(dir_ / "mine") << "kept";
  ASSERT_OK_AND_ASSIGN(const auto running, Begin("out"));
  EXPECT_THAT(Entries(), testing::SizeIs(4));
  OutputFolder::RemoveUnfinished(roots_);
  EXPECT_THAT(Entries(), UnorderedElementsAre("source", "mine", StartsWith(".adapterd-merge-")));
  EXPECT_THAT(running->Commit(), IsOk());
  EXPECT_THAT(Entries(), UnorderedElementsAre("source", "mine", "out"));
}

TEST_F(OutputFolderTest, PlacesThatCannotBeAreRefused) {
  std::ofstream(dir_ / "file") << "kept";
  fs::create_directory(dir_ / "source" / "sub");
  fs::create_directory_symlink("source/sub", dir_ / "link");
  const struct {
    std::string output;
    Reason reason;
  } refused[] = {{"", Reason::kInvalidField},
                 {"../out", Reason::kPathOutsideRoot},
                 {"/out", Reason::kPathOutsideRoot},
                 {".", Reason::kOutputExists},
                 {"source", Reason::kOutputExists},
                 {"file", Reason::kOutputExists},
                 {"file/out", Reason::kSourceNotFound},
                 {"source/out", Reason::kInvalidField},
                 {"source/sub/a/b", Reason::kInvalidField},
                 {"link/out", Reason::kInvalidField},
                 {".adapterd-merge-x", Reason::kInvalidField}};
  for (const auto& [output, reason] : refused) {
    SCOPED_TRACE(output);
    EXPECT_THAT(Begin(output), HasReason(reason));
  }
  EXPECT_THAT(Entries(), UnorderedElementsAre("source", "file", "link"));
  EXPECT_THAT(Entries("source/sub"), IsEmpty());
}

}  // namespace
}  // namespace adapterd
