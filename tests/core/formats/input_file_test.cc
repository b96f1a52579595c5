#include "core/formats/input_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "core/base/thread_pool.h"
#include "tests/core/formats/file_bytes.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

InputFile OpenPath(const std::filesystem::path& path) {
  return *InputFile::FromDescriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC), path.filename());
}

absl::StatusOr<std::string> Read(const InputFile& file, int64_t offset, size_t count) {
  std::string out(count, '?');
  RETURN_IF_ERROR(file.ReadAt(offset, std::as_writable_bytes(std::span(out))));
  return out;
}

// File systems stamp times by a clock that ticks every few milliseconds: waits until a change would
// get another stamp than `file` has.
void WaitForTick(const InputFile& file) {
  timespec now;
  do {
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
  } while (now.tv_sec * 1'000'000'000 + now.tv_nsec <= file.identity().changed_ns);
}

TEST(InputFileTest, ReadsAnywhereInTheFile) {
  const InputFile file = FileOf("0123456789", "numbers");
  EXPECT_EQ(file.name(), "numbers");
  EXPECT_EQ(file.size(), 10);
  EXPECT_EQ(*Read(file, 0, 10), "0123456789");
  EXPECT_EQ(*Read(file, 3, 4), "3456");
  EXPECT_EQ(*Read(file, 9, 1), "9");
  EXPECT_EQ(*Read(file, 10, 0), "");
  EXPECT_THAT(file.CheckUnchanged(), IsOk());
}

TEST(InputFileTest, ReadingBeyondTheEndMeansThatTheFileChanged) {
  const InputFile file = FileOf("0123456789", "numbers");
  EXPECT_THAT(Read(file, 8, 3), HasReason(Reason::kSourceChanged));
  EXPECT_THAT(Read(file, 100, 1), HasReason(Reason::kSourceChanged));
  EXPECT_THAT(Read(file, 8, 3), HasErrorMetadata("file", "numbers"));
}

TEST(InputFileTest, SeveralThreadsMayReadAtOnce) {
  std::string content;
  for (int i = 0; i < 4096; ++i) content += std::to_string(i % 10);
  const InputFile file = FileOf(content);
  std::array<std::string, 4> parts;
  {
    ThreadPool pool("read", 4);
    for (int i = 0; i < 4; ++i) {
      pool.Submit([&file, &parts, i] { parts[i] = *Read(file, 1024 * i, 1024); });
    }
  }
  EXPECT_EQ(parts[0] + parts[1] + parts[2] + parts[3], content);
}

TEST(InputFileTest, OnlyRegularFilesAreTaken) {
  EXPECT_THAT(InputFile::FromDescriptor(open("/", O_RDONLY | O_CLOEXEC), "folder"),
              HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(InputFile::FromDescriptor(open("/dev/null", O_RDONLY | O_CLOEXEC), "device"),
              HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(InputFile::FromDescriptor(-1, "none"), HasReason(Reason::kSourceUnavailable));
}

TEST(InputFileTest, TheDescriptorIsClosedEvenWhenRefused) {
  const int refused = open("/", O_RDONLY | O_CLOEXEC);
  EXPECT_THAT(InputFile::FromDescriptor(refused, "folder"), Not(IsOk()));
  EXPECT_EQ(fcntl(refused, F_GETFD), -1);
  int taken = -1;
  {
    const TempDir folder;
    taken = open(folder.Write("f", "x").c_str(), O_RDONLY | O_CLOEXEC);
    const auto file = InputFile::FromDescriptor(taken, "f");
    EXPECT_NE(fcntl(taken, F_GETFD), -1);
  }
  EXPECT_EQ(fcntl(taken, F_GETFD), -1);
}

TEST(InputFileTest, MovesHandTheDescriptorOn) {
  InputFile first = FileOf("first", "first");
  InputFile second = FileOf("second", "second");
  second = std::move(first);
  EXPECT_EQ(second.name(), "first");
  EXPECT_EQ(*Read(second, 0, 5), "first");
  const InputFile third = std::move(second);
  EXPECT_EQ(*Read(third, 0, 5), "first");
}

TEST(InputFileTest, GrowingIsAChange) {
  const TempDir folder;
  const auto path = folder.Write("f", "0123456789");
  const InputFile file = OpenPath(path);
  EXPECT_THAT(file.CheckUnchanged(), IsOk());
  std::ofstream(path, std::ios::app) << "more";
  EXPECT_THAT(file.CheckUnchanged(), HasReason(Reason::kSourceChanged));
  EXPECT_THAT(file.CheckUnchanged(), HasMessage(HasSubstr("10 bytes became 14")));
}

TEST(InputFileTest, ShrinkingIsAChange) {
  const TempDir folder;
  const auto path = folder.Write("f", "0123456789");
  const InputFile file = OpenPath(path);
  std::filesystem::resize_file(path, 4);
  EXPECT_THAT(Read(file, 0, 10), HasReason(Reason::kSourceChanged));
  EXPECT_THAT(file.CheckUnchanged(), HasReason(Reason::kSourceChanged));
}

TEST(InputFileTest, AnotherModificationTimeIsAChange) {
  const TempDir folder;
  const auto path = folder.Write("f", "0123456789");
  const InputFile file = OpenPath(path);
  const timespec times[2] = {{.tv_sec = 0, .tv_nsec = UTIME_OMIT}, {.tv_sec = 1, .tv_nsec = 0}};
  ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  EXPECT_THAT(file.CheckUnchanged(), HasReason(Reason::kSourceChanged));
}

TEST(InputFileTest, OverwritingAndSettingTheTimeBackIsAChange) {
  const TempDir folder;
  const auto path = folder.Write("f", "0123456789");
  const InputFile file = OpenPath(path);
  WaitForTick(file);
  std::fstream(path, std::ios::in | std::ios::out) << "X";
  const int64_t before = file.identity().modified_ns;
  const timespec modified = {.tv_sec = before / 1'000'000'000, .tv_nsec = before % 1'000'000'000};
  const timespec times[2] = {modified, modified};
  ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  EXPECT_THAT(file.CheckUnchanged(), HasReason(Reason::kSourceChanged));
}

TEST(InputFileTest, ReplacingByRenameIsAChangeAndTheOldBytesStay) {
  const TempDir folder;
  const auto path = folder.Write("f", "old bytes!");
  const InputFile file = OpenPath(path);
  WaitForTick(file);
  std::filesystem::rename(folder.Write("new", "new bytes!"), path);
  EXPECT_EQ(*Read(file, 0, 10), "old bytes!");
  EXPECT_THAT(file.CheckUnchanged(), HasReason(Reason::kSourceChanged));
}

TEST(InputFileTest, IdentitiesTellFilesApart) {
  const TempDir folder;
  const auto path = folder.Write("f", "0123456789");
  const FileIdentity first = OpenPath(path).identity();
  EXPECT_EQ(OpenPath(path).identity(), first);
  EXPECT_NE(OpenPath(folder.Write("g", "0123456789")).identity(), first);
}

TEST(ReadSmallFileTest, ReadsUpToTheLimit) {
  EXPECT_EQ(*ReadSmallFile(FileOf("0123456789"), 10), "0123456789");
  EXPECT_EQ(*ReadSmallFile(FileOf(""), 10), "");
  const auto large = ReadSmallFile(FileOf("0123456789", "adapter_config.json"), 9);
  EXPECT_THAT(large, HasReason(Reason::kMalformedConfig));
  EXPECT_THAT(large, HasErrorMetadata("file", "adapter_config.json"));
  EXPECT_THAT(large, HasErrorMetadata("actual", "10 bytes"));
}

}  // namespace
}  // namespace adapterd
