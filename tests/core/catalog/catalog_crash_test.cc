// What a catalogue is after its process was killed, or while its disk is full.
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <map>
#include <random>

#include "tests/core/catalog/child_process.h"
#include "tests/core/catalog/records.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(CatalogCrashTest, ASecondProcessIsLetInOnlyAfterTheFirst) {
  TempDir dir;
  const std::string data_dir = dir / "data";
  ChildProcess holder([&](ChildProcess& self) {
    auto catalog = OpenCatalog(data_dir);
    EXPECT_THAT(catalog->Put(FullRecord("a")), IsOk());
    self.Tell();
    ChildProcess::WaitForever();
    return 0;
  });
  ASSERT_TRUE(holder.Hear());
  EXPECT_THAT(SqliteCatalog::Open(data_dir),
              HasMessage(HasSubstr("in use by process " + std::to_string(holder.pid()))));
  holder.Kill();
  EXPECT_THAT(RecordsOf(*OpenCatalog(data_dir)), ElementsAre(FullRecord("a")));
}

// Step `i` of an endless history of a few adapters, as it changes the catalogue and a model of it.
using Model = std::map<std::string, AdapterRecord>;

AdapterRecord StepRecord(int i) {
  AdapterRecord record = FullRecord("adapter-" + std::to_string(i % 4));
  record.etag = std::to_string(i);
  record.kept.resize(static_cast<size_t>(i % 3));
  return record;
}

bool IsErase(int i) { return i % 7 == 6; }

void Step(int i, Model& model) {
  const AdapterRecord record = StepRecord(i);
  if (IsErase(i)) {
    model.erase(record.name);
  } else {
    model[record.name] = record;
  }
}

absl::Status Step(int i, SqliteCatalog& catalog) {
  const AdapterRecord record = StepRecord(i);
  return IsErase(i) ? catalog.Erase(record.name) : catalog.Put(record);
}

std::vector<AdapterRecord> Values(const Model& model) {
  std::vector<AdapterRecord> records;
  for (const auto& [name, record] : model) records.push_back(record);
  return records;
}

TEST(CatalogCrashTest, WhatWasAcknowledgedSurvivesAKillAtAnyPoint) {
  constexpr int kRounds = 20;
  TempDir dir;
  const std::string data_dir = dir / "data";
  std::mt19937 random(7);  // NOLINT: the same steps in every run
  Model model;
  int next = 0;
  for (int round = 0; round < kRounds; ++round) {
    ChildProcess writer([&](ChildProcess& self) {
      auto catalog = OpenCatalog(data_dir);
      for (int i = next;; ++i) {
        if (!Step(i, *catalog).ok()) return 1;
        self.Tell();
      }
    });
    const int before_the_kill = static_cast<int>(random() % 15);
    int acknowledged = 0;
    while (acknowledged < before_the_kill && writer.Hear()) ++acknowledged;
    ASSERT_EQ(acknowledged, before_the_kill);
    writer.Kill();
    while (writer.Hear()) ++acknowledged;

    for (int i = 0; i < acknowledged; ++i) Step(next++, model);
    Model with_the_last = model;  // which was on disk, but not acknowledged
    Step(next, with_the_last);
    const std::vector<AdapterRecord> found = RecordsOf(*OpenCatalog(data_dir));
    ASSERT_THAT(found, AnyOf(Values(model), Values(with_the_last))) << "round " << round;
    if (found != Values(model)) {
      model = with_the_last;
      ++next;
    }
  }
  EXPECT_GT(next, kRounds);
}

void SetFileLimit(rlim_t bytes) {
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  limit.rlim_cur = std::min(bytes, limit.rlim_max);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

TEST(CatalogCrashTest, AFileThatMayNotGrowLeavesTheFormerRecord) {
  TempDir dir;
  ChildProcess child([&](ChildProcess&) {
    signal(SIGXFSZ, SIG_IGN);  // so that the write fails instead
    auto catalog = OpenCatalog(dir / "data");
    EXPECT_THAT(catalog->Put(SmallRecord("a", "1")), IsOk());
    SetFileLimit(std::filesystem::file_size(dir / "data/catalogue.sqlite-wal") + 2000);
    const absl::Status full = catalog->Put(SmallRecord("a", "2"));
    EXPECT_THAT(full, HasReason(Reason::kStorageFull));
    EXPECT_THAT(full, HasMessage(testing::AllOf(HasSubstr("cannot write adapter \"a\""),
                                                HasSubstr("File too large"),
                                                HasSubstr((dir / "data").string()))));
    EXPECT_THAT(full, HasErrorMetadata("adapter", "a"));
    EXPECT_THAT(catalog->Erase("a"), HasReason(Reason::kStorageFull));
    EXPECT_THAT(RecordsOf(*catalog), ElementsAre(SmallRecord("a", "1")));
    SetFileLimit(RLIM_INFINITY);
    EXPECT_THAT(catalog->Put(SmallRecord("a", "3")), IsOk());
    EXPECT_THAT(RecordsOf(*catalog), ElementsAre(SmallRecord("a", "3")));
    return 0;
  });
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_THAT(RecordsOf(*OpenCatalog(dir / "data")), ElementsAre(SmallRecord("a", "3")));
}

constexpr int kNotPermitted = 77;

// In a mount namespace of the child's own; it goes with the child.
bool MountSmallDisk(const std::filesystem::path& where) {
  return unshare(CLONE_NEWNS) == 0 &&
         mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         mount("tmpfs", where.c_str(), "tmpfs", 0, "size=512k") == 0;
}

TEST(CatalogCrashTest, AFullDiskLosesNothingThatWasAcknowledged) {
  TempDir dir;
  ChildProcess child([&](ChildProcess&) {
    if (!MountSmallDisk(dir.path())) return kNotPermitted;
    dir.Write("ballast", std::string(200'000, 'b'));
    auto catalog = OpenCatalog(dir / "data");
    std::vector<AdapterRecord> acknowledged;
    absl::Status status;
    for (int i = 10; i < 99 && status.ok(); ++i) {
      AdapterRecord record = SmallRecord("a" + std::to_string(i));
      record.labels = {{"large", std::string(20'000, 'x')}};
      status = catalog->Put(record);
      if (status.ok()) acknowledged.push_back(record);
    }
    EXPECT_THAT(status, HasReason(Reason::kStorageFull));
    EXPECT_GT(acknowledged.size(), 2U);
    EXPECT_EQ(RecordsOf(*catalog), acknowledged);
    std::filesystem::remove(dir / "ballast");
    acknowledged.push_back(SmallRecord("z"));
    EXPECT_THAT(catalog->Put(acknowledged.back()), IsOk());
    catalog.reset();
    EXPECT_EQ(RecordsOf(*OpenCatalog(dir / "data")), acknowledged);
    return 0;
  });
  const int code = child.Wait();
  if (code == kNotPermitted) GTEST_SKIP() << "a file system may not be mounted here";
  EXPECT_EQ(code, 0);
}

// Root passes every permission, so the child becomes somebody else.
TEST(CatalogCrashTest, AFileThatMayOnlyBeReadIsRefused) {
  constexpr uid_t kNobody = 65534;
  TempDir dir;
  const std::string data_dir = dir / "data";
  ASSERT_NE(OpenCatalog(data_dir), nullptr);
  std::filesystem::permissions(dir.path(), static_cast<std::filesystem::perms>(0755));
  std::filesystem::permissions(data_dir + "/" + kCatalogueFile,
                               static_cast<std::filesystem::perms>(0400));
  ChildProcess child([&](ChildProcess&) {
    if (geteuid() == 0) {
      EXPECT_EQ(chown(data_dir.c_str(), kNobody, kNobody), 0);
      for (const auto& entry : std::filesystem::directory_iterator(data_dir)) {
        EXPECT_EQ(chown(entry.path().c_str(), kNobody, kNobody), 0);
      }
      EXPECT_EQ(setuid(kNobody), 0);
    }
    const absl::Status status = SqliteCatalog::Open(data_dir).status();
    EXPECT_THAT(status, HasReason(Reason::kSourceUnavailable));
    EXPECT_THAT(status, HasMessage(HasSubstr("may be read but not written")));
    return 0;
  });
  EXPECT_EQ(child.Wait(), 0);
}

}  // namespace
}  // namespace adapterd
