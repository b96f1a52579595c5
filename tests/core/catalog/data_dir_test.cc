#include "core/catalog/data_dir.h"

#include <sys/stat.h>

#include "tests/core/catalog/child_process.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(DataDirTest, IsMadeForItsOwnerAlone) {
  TempDir dir;
  for (const char* name : {"plain", "slash/"}) {
    ASSERT_THAT(DataDir::Open(dir / name), IsOk());
    struct stat state;
    ASSERT_EQ(stat((dir / name).c_str(), &state), 0);
    EXPECT_EQ(state.st_mode, S_IFDIR | 0700);
  }
}

TEST(DataDirTest, ItsParentMustExist) {
  TempDir dir;
  const absl::Status status = DataDir::Open(dir / "missing/data").status();
  EXPECT_THAT(status, HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(status, HasMessage(HasSubstr("missing/data\": its parent does not exist")));
}

TEST(DataDirTest, AFileInItsPlaceIsRefused) {
  TempDir dir;
  const absl::Status status = DataDir::Open(dir.Write("file", "x")).status();
  EXPECT_THAT(status, HasReason(Reason::kSourceUnavailable));
  EXPECT_THAT(status, HasMessage(HasSubstr("Not a directory")));
}

TEST(DataDirTest, ALinkInPlaceOfTheLockIsNotFollowed) {
  TempDir dir;
  dir.Write("victim", "precious");
  std::filesystem::create_directory(dir / "data");
  std::filesystem::create_symlink(dir / "victim", dir / "data/lock");
  EXPECT_THAT(DataDir::Open(dir / "data"), HasReason(Reason::kSourceUnavailable));
  EXPECT_EQ(ReadFile(dir / "victim"), "precious");
}

TEST(DataDirTest, ASecondHolderIsRefusedWithTheNumberOfTheFirst) {
  TempDir dir;
  const std::string path = dir / "data";
  ChildProcess holder([&](ChildProcess& self) {
    const auto held = DataDir::Open(path);
    EXPECT_THAT(held, IsOk());
    self.Tell();
    ChildProcess::WaitForever();
    return 0;
  });
  ASSERT_TRUE(holder.Hear());
  const absl::Status status = DataDir::Open(path).status();
  EXPECT_THAT(status, HasReason(Reason::kSourceUnavailable));
  EXPECT_THAT(status,
              HasMessage(AllOf(HasSubstr("\"" + path + "\""),
                               HasSubstr("in use by process " + std::to_string(holder.pid())))));
  dir.Write("data/lock", "nonsense");
  EXPECT_THAT(DataDir::Open(path), HasMessage(HasSubstr("in use by another process")));
  holder.Kill();
  EXPECT_THAT(DataDir::Open(path), IsOk());
}

TEST(DataDirTest, IsFreeAgainWhenItsHolderLetsGo) {
  TempDir dir;
  ChildProcess holder([&](ChildProcess&) {
    EXPECT_THAT(DataDir::Open(dir / "data"), IsOk());
    return 0;
  });
  EXPECT_EQ(holder.Wait(), 0);
  auto held = DataDir::Open(dir / "data");
  ASSERT_THAT(held, IsOk());
  EXPECT_THAT(DataDir::Open(dir / "data"), HasReason(Reason::kSourceUnavailable));
}

// Root passes every permission, so the child becomes somebody else.
TEST(DataDirTest, AFolderThatCannotBeWrittenIsRefused) {
  TempDir dir;
  std::filesystem::permissions(dir.path(), static_cast<std::filesystem::perms>(0755));
  std::filesystem::create_directory(dir / "data");
  std::filesystem::permissions(dir / "data", static_cast<std::filesystem::perms>(0555));
  ChildProcess child([&](ChildProcess&) {
    constexpr uid_t kNobody = 65534;
    if (geteuid() == 0) {
      EXPECT_EQ(setuid(kNobody), 0);
    }
    const absl::Status existing = DataDir::Open(dir / "data").status();
    EXPECT_THAT(existing, HasReason(Reason::kSourceUnavailable));
    EXPECT_THAT(existing, HasMessage(HasSubstr("\"lock\": Permission denied")));
    const absl::Status absent = DataDir::Open(dir / "data/below").status();
    EXPECT_THAT(absent, HasReason(Reason::kSourceUnavailable));
    EXPECT_THAT(absent, HasMessage(HasSubstr("cannot be created: Permission denied")));
    return 0;
  });
  EXPECT_EQ(child.Wait(), 0);
}

}  // namespace
}  // namespace adapterd
