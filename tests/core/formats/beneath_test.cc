// Both ways to resolve a path, over one table: they must agree on what is inside and what is not.
#include "core/formats/beneath.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>

#include "core/base/thread_pool.h"
#include "core/formats/input_file.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::Not;

struct Case {
  const char* path;
  std::optional<Reason> refused;  // none: leads to the file "inside"
};

const Case kCases[] = {
    {"file", {}},
    {"a/b/file", {}},
    {"link", {}},
    {"a/link-to-sibling", {}},
    {"a/b/link-up-and-down", {}},
    {"folder-link/b/file", {}},
    {"dotted-link", {}},
    {"link-to-link", {}},
    {"there-and-back", {}},
    {"a/b/to-top/file", {}},
    {"to-here/to-here/file", {}},
    {"chain-40", {}},
    {"name:with:colons", {}},
    {"..file", {}},
    {"missing", Reason::kSourceNotFound},
    {"a/missing/file", Reason::kSourceNotFound},
    {"file/below-a-file", Reason::kSourceNotFound},
    {"link/below-a-file", Reason::kSourceNotFound},
    {"slash-after-a-file", Reason::kSourceNotFound},
    {"dangling", Reason::kSourceNotFound},
    {"loop", Reason::kSourceNotFound},
    {"chain-41", Reason::kSourceNotFound},
    {"out", Reason::kPathOutsideRoot},
    {"out-folder/file", Reason::kPathOutsideRoot},
    {"out-by-a-chain", Reason::kPathOutsideRoot},
    {"out-and-back", Reason::kPathOutsideRoot},
    {"above", Reason::kPathOutsideRoot},
    {"a/b/three-up", Reason::kPathOutsideRoot},
    {"absolute-inside", Reason::kPathOutsideRoot},
    {"absolute-outside", Reason::kPathOutsideRoot},
    {"to-device", Reason::kPathOutsideRoot},
};

class BeneathTest : public ::testing::TestWithParam<BeneathStrategy> {
 protected:
  BeneathTest() {
    const auto link = [&](std::string_view name, const std::filesystem::path& target) {
      std::filesystem::create_symlink(target, top_ / name);
    };
    temp_.Write("outside/file", "outside");
    for (const char* file : {"file", "a/b/file", "a/sibling", "name:with:colons", "..file"}) {
      temp_.Write(std::string("top/") + file, "inside");
    }
    link("link", "file");
    link("a/link-to-sibling", "sibling");
    link("a/b/link-up-and-down", "../../a/sibling");
    link("folder-link", "a");
    link("dotted-link", "./a//b/./../b/file");
    link("link-to-link", "a/b/link-up-and-down");
    link("there-and-back", "a/b/../../file");
    link("a/b/to-top", "../..");
    link("to-here", ".");
    link("chain-1", "file");
    for (int i = 2; i <= 41; ++i) {
      link("chain-" + std::to_string(i), "chain-" + std::to_string(i - 1));
    }
    link("slash-after-a-file", "file/");
    link("dangling", "missing");
    link("loop", "loop-back");
    link("loop-back", "loop");
    link("out", "../outside/file");
    link("out-folder", "../outside");
    link("out-by-a-chain", "link-that-leaves");
    link("link-that-leaves", "a/../../outside/file");
    link("out-and-back", "../top/file");
    link("above", "..");
    link("a/b/three-up", "../../../top/file");
    link("absolute-inside", top_ / "file");
    link("absolute-outside", temp_ / "outside/file");
    link("to-device", "/dev/null");
    folder_ = ScopedFd(open(top_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  }

  absl::StatusOr<ScopedFd> Open(const std::string& path) const {
    return OpenBeneath(folder_.get(), path, GetParam());
  }

  static std::string Content(const ScopedFd& pinned) {
    return ReadFile("/proc/self/fd/" + std::to_string(pinned.get()));
  }

  const TempDir temp_;
  const std::filesystem::path top_ = temp_ / "top";
  ScopedFd folder_;
};

TEST_P(BeneathTest, StaysInside) {
  for (const Case& tested : kCases) {
    const auto opened = Open(tested.path);
    if (tested.refused) {
      EXPECT_THAT(opened, HasReason(*tested.refused)) << tested.path;
      EXPECT_THAT(opened, HasErrorMetadata("file", tested.path));
      continue;
    }
    ASSERT_THAT(opened, IsOk()) << tested.path;
    EXPECT_EQ(Content(*opened), "inside") << tested.path;
  }
}

TEST_P(BeneathTest, OpensTheFolderItself) {
  ASSERT_OK_AND_ASSIGN(const ScopedFd here, Open("."));
  ASSERT_OK_AND_ASSIGN(const ScopedFd by_link, Open("to-here"));
  struct stat top;
  struct stat opened;
  ASSERT_EQ(stat(top_.c_str(), &top), 0);
  for (const ScopedFd* fd : {&here, &by_link}) {
    ASSERT_EQ(fstat(fd->get(), &opened), 0);
    EXPECT_EQ(opened.st_ino, top.st_ino);
  }
}

TEST_P(BeneathTest, ComponentsLongerThanAnyFileNameAreNotFound) {
  EXPECT_THAT(Open(std::string(300, 'n')), HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(Open("a/" + std::string(5000, 'n')), HasReason(Reason::kSourceNotFound));
}

TEST_P(BeneathTest, LinksOfTheProcessFileSystemLeadNowhere) {
  // These look like symlinks and jump past every check when they are followed.
  const ScopedFd process(open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC));
  for (const char* path : {"exe", "cwd/file", "root", "fd/0"}) {
    EXPECT_THAT(OpenBeneath(process.get(), path, GetParam()), Not(IsOk())) << path;
  }
}

TEST_P(BeneathTest, NothingLeaksADescriptor) {
  const auto open_descriptors = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
  };
  const auto before = open_descriptors();
  for (const Case& tested : kCases) Open(tested.path).IgnoreError();
  EXPECT_EQ(open_descriptors(), before);
}

TEST_P(BeneathTest, SwappingAFolderForALinkInTheMiddleNeverLeadsOut) {
  std::filesystem::create_directory(top_ / "swap");
  temp_.Write("top/swap/file", "inside");
  std::filesystem::create_symlink("../outside", top_ / "swap-link");
  std::atomic<bool> stop = false;
  ThreadPool pool("swap", 1);
  pool.Submit([&] {
    while (!stop) {
      syscall(SYS_renameat2, folder_.get(), "swap", folder_.get(), "swap-link", 2 /* exchange */);
    }
  });
  for (int i = 0; i < 3000; ++i) {
    const auto opened = Open("swap/file");
    if (opened.ok() && Content(*opened) != "inside") {
      ADD_FAILURE() << "escaped in round " << i;
      break;
    }
  }
  stop = true;
}

INSTANTIATE_TEST_SUITE_P(Strategies, BeneathTest,
                         ::testing::Values(BeneathStrategy::kOpenat2, BeneathStrategy::kWalk),
                         [](const auto& tested) {
                           return tested.param == BeneathStrategy::kWalk ? "Walk" : "Openat2";
                         });

// Makes openat2 fail with `error` in this process from now on, as container runtimes do.
bool ForbidOpenat2(int error) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {.len = std::size(filter), .filter = filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST(BeneathAutomaticTest, WalksWhereTheKernelForbidsOpenat2) {
  const TempDir temp;
  temp.Write("a/file", "inside");
  std::filesystem::create_symlink("../../outside", temp / "a/out");
  const ScopedFd folder(open(temp.path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  for (int error : {ENOSYS, EPERM}) {
    const auto check = [&] {
      if (!ForbidOpenat2(error)) return 2;
      const auto reason = [&](const char* path, BeneathStrategy strategy) {
        const auto opened = OpenBeneath(folder.get(), path, strategy);
        return opened.ok() ? std::nullopt : std::optional(GetErrorDetails(opened.status()).reason);
      };
      const bool right =
          reason("a/file", BeneathStrategy::kOpenat2) == Reason::kSourceUnavailable &&
          reason("a/file", BeneathStrategy::kAutomatic) == std::nullopt &&
          reason("a/out", BeneathStrategy::kAutomatic) == Reason::kPathOutsideRoot;
      return right ? 0 : 1;
    };
    EXPECT_EXIT(_exit(check()), ::testing::ExitedWithCode(0), "") << error;
  }
}

TEST(NormalizeBelowTest, DropsWhatMeansNothing) {
  for (const auto& [path, normalized] :
       std::vector<std::pair<std::string, std::string>>{{"a", "a"},
                                                        {"a/b", "a/b"},
                                                        {"./a", "a"},
                                                        {"a/./b/", "a/b"},
                                                        {"a//b", "a/b"},
                                                        {"a/b///", "a/b"},
                                                        {".", "."},
                                                        {"./", "."},
                                                        {"", "."},
                                                        {"./.", "."},
                                                        {"..a/b..", "..a/b.."},
                                                        {"...", "..."},
                                                        {"a:b", "a:b"},
                                                        {"a\\..\\b", "a\\..\\b"}}) {
    ASSERT_OK_AND_ASSIGN(const std::string result, NormalizeBelow(path));
    EXPECT_EQ(result, normalized);
  }
}

TEST(NormalizeBelowTest, RefusesAbsolutePathsAndDotDot) {
  for (const char* path : {"/", "/a", "//a", "..", "../a", "a/..", "a/../b", "a/../../b", "./.."}) {
    EXPECT_THAT(NormalizeBelow(path), HasReason(Reason::kPathOutsideRoot)) << path;
  }
}

}  // namespace
}  // namespace adapterd
