#include "core/formats/source_roots.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <utility>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using namespace std::string_literals;  // NOLINT(google-build-using-namespace): only operator""s

std::string Content(const absl::StatusOr<InputFile>& file) {
  if (!file.ok()) return file.status().ToString();
  return ReadSmallFile(*file, 1000).value_or("?");
}

// A hub cache, a named root and the things that live on disks.
class SourceRootsTest : public ::testing::Test {
 protected:
  SourceRootsTest() {
    temp_.Write("main/french/adapter_config.json", "{}");
    temp_.Write("main/french/adapter_model.safetensors", "weights");
    temp_.Write("main/blobs/0a1b", "blob");
    temp_.Write("main/single.gguf", "gguf");
    temp_.Write("named/german/adapter_config.json", "german");
    temp_.Write("secret/password", "secret");
    std::filesystem::create_directories(temp_ / "main/snapshots/main");
    Link("main/snapshots/main/adapter_model.safetensors", "../../blobs/0a1b");
    Link("main/french/out", "../../secret/password");
    Link("main/french/null", "/dev/null");
    Link("main/latest", "french");
    Link("main/stolen", "../secret");
  }

  void Link(std::string_view name, const std::filesystem::path& target) {
    std::filesystem::create_symlink(target, temp_ / name);
  }

  SourceRoots Unnamed() const { return *SourceRoots::Open({{"", temp_ / "main"}}); }
  SourceRoots Named() const { return *SourceRoots::Open({{"de", temp_ / "named"}}); }
  SourceRoots Both() const {
    return *SourceRoots::Open({{"", temp_ / "main"}, {"de", temp_ / "named"}});
  }

  const TempDir temp_;
};

TEST_F(SourceRootsTest, OpensAFolderAndItsFiles) {
  const SourceRoots roots = Unnamed();
  ASSERT_OK_AND_ASSIGN(const SourceFolder folder, roots.OpenFolder("french"));
  EXPECT_EQ(folder.path(), "french");
  EXPECT_THAT(folder.entries(),
              ElementsAre("adapter_config.json", "adapter_model.safetensors", "null", "out"));
  EXPECT_TRUE(folder.Has("adapter_config.json"));
  EXPECT_FALSE(folder.Has("adapter_config"));
  ASSERT_OK_AND_ASSIGN(const InputFile file, folder.OpenFile("adapter_config.json"));
  EXPECT_EQ(file.name(), "french/adapter_config.json");
  EXPECT_EQ(*ReadSmallFile(file, 10), "{}");
}

TEST_F(SourceRootsTest, SpellingsOfOneFolderAreTheSameFolder) {
  const SourceRoots roots = Unnamed();
  for (const char* source :
       {"french", "./french", "french/", "french//", ".//french/.", "latest"}) {
    ASSERT_OK_AND_ASSIGN(const SourceFolder folder, roots.OpenFolder(source));
    EXPECT_EQ(Content(folder.OpenFile("adapter_model.safetensors")), "weights") << source;
  }
  ASSERT_OK_AND_ASSIGN(const SourceFolder top, roots.OpenFolder("."));
  EXPECT_TRUE(top.Has("french"));
  EXPECT_EQ(Content(top.OpenFile("single.gguf")), "gguf");
}

TEST_F(SourceRootsTest, ASymlinkMayLeadElsewhereBelowTheRoot) {
  ASSERT_OK_AND_ASSIGN(const SourceFolder folder, Unnamed().OpenFolder("snapshots/main"));
  EXPECT_EQ(Content(folder.OpenFile("adapter_model.safetensors")), "blob");
}

TEST_F(SourceRootsTest, NoSourceLeavesTheRoot) {
  const SourceRoots roots = Unnamed();
  const std::string absolute = temp_ / "main/french";
  for (const std::string& source :
       {"../secret"s, "french/../../secret"s, "french/.."s, ".."s, "/etc/passwd"s, "/"s, absolute,
        "stolen"s, "stolen/password"s, "./../secret"s}) {
    EXPECT_THAT(roots.OpenFolder(source), HasReason(Reason::kPathOutsideRoot)) << source;
    EXPECT_THAT(roots.IsFile(source), HasReason(Reason::kPathOutsideRoot)) << source;
  }
}

TEST_F(SourceRootsTest, NoFileOfAFolderLeavesTheRoot) {
  ASSERT_OK_AND_ASSIGN(const SourceFolder folder, Unnamed().OpenFolder("french"));
  for (const char* name :
       {"out", "null", "../single.gguf", "../../secret/password", "/etc/passwd"}) {
    EXPECT_THAT(folder.OpenFile(name), HasReason(Reason::kPathOutsideRoot)) << name;
  }
  EXPECT_THAT(folder.OpenFile("out"), HasErrorMetadata("file", "french/out"));
}

TEST_F(SourceRootsTest, WhatIsNotThereIsNotFound) {
  const SourceRoots roots = Unnamed();
  for (const char* source : {"italian", "french/missing", "single.gguf/x", "French"}) {
    EXPECT_THAT(roots.OpenFolder(source), HasReason(Reason::kSourceNotFound)) << source;
    EXPECT_THAT(roots.IsFile(source), HasReason(Reason::kSourceNotFound)) << source;
  }
  ASSERT_OK_AND_ASSIGN(const SourceFolder top, roots.OpenFolder("."));
  for (const std::string& name : {"missing"s, ""s, "."s, "french"s, "single.gguf\0x"s}) {
    EXPECT_THAT(top.OpenFile(name), HasReason(Reason::kSourceNotFound)) << name;
  }
}

TEST_F(SourceRootsTest, BadSourcesAreInvalid) {
  for (const std::string& source : {""s, "a\0b"s, std::string(kMaxSourceBytes + 1, 'a')}) {
    EXPECT_THAT(Unnamed().OpenFolder(source), HasReason(Reason::kInvalidField));
    EXPECT_THAT(Unnamed().OpenFolder(source), HasErrorMetadata("field", "source"));
  }
  EXPECT_THAT(Unnamed().OpenFolder(std::string(kMaxSourceBytes, 'a')),
              HasReason(Reason::kSourceNotFound));
}

TEST_F(SourceRootsTest, MessagesNeverShowWhereARootLies) {
  const SourceRoots roots = Both();
  for (const char* source : {"", "missing", "../x", "stolen", "de:missing", "xx:missing"}) {
    const auto result = roots.OpenFolder(source);
    EXPECT_THAT(result, Not(IsOk()));
    EXPECT_THAT(result, HasMessage(Not(HasSubstr(temp_.path().string())))) << source;
  }
}

TEST_F(SourceRootsTest, ASourceMayBeOneFile) {
  temp_.Write("main/french/other.gguf", "other");
  const SourceRoots roots = Unnamed();
  EXPECT_EQ(*roots.IsFile("single.gguf"), true);
  EXPECT_EQ(*roots.IsFile("french"), false);
  EXPECT_EQ(*roots.IsFile("."), false);
  ASSERT_OK_AND_ASSIGN(const SourceFolder top, roots.OpenFolder("single.gguf"));
  EXPECT_EQ(top.path(), ".");
  EXPECT_THAT(top.entries(), ElementsAre("single.gguf"));
  EXPECT_EQ(Content(top.OpenFile("single.gguf")), "gguf");
  ASSERT_OK_AND_ASSIGN(const SourceFolder nested, roots.OpenFolder("french/other.gguf"));
  EXPECT_EQ(nested.path(), "french");
  EXPECT_THAT(nested.entries(), ElementsAre("other.gguf"));
  EXPECT_EQ(Content(nested.OpenFile("other.gguf")), "other");
}

TEST_F(SourceRootsTest, NamedRootsAreReachedByTheirName) {
  const SourceRoots roots = Both();
  EXPECT_THAT(roots.names(), ElementsAre("", "de"));
  ASSERT_OK_AND_ASSIGN(const SourceFolder german, roots.OpenFolder("de:german"));
  EXPECT_EQ(german.path(), "german");
  EXPECT_EQ(Content(german.OpenFile("adapter_config.json")), "german");
  EXPECT_THAT(roots.OpenFolder("de:."), IsOk());
  EXPECT_THAT(roots.OpenFolder("french"), IsOk());
  EXPECT_THAT(roots.OpenFolder("de:french"), HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(roots.OpenFolder("german"), HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(roots.OpenFolder("de:/german"), HasReason(Reason::kPathOutsideRoot));
  EXPECT_THAT(roots.OpenFolder("de:../main"), HasReason(Reason::kPathOutsideRoot));
  EXPECT_THAT(roots.OpenFolder("de:"), HasReason(Reason::kInvalidField));
}

TEST_F(SourceRootsTest, ColonsBelowTheUnnamedRootAreOrdinary) {
  temp_.Write("main/v1:french/f", "1");
  temp_.Write("main/a b:c/f", "2");
  temp_.Write("main/de:german/f", "3");
  const SourceRoots roots = Both();
  EXPECT_EQ(Content(roots.OpenFolder("v1:french")->OpenFile("f")), "1");
  EXPECT_EQ(Content(roots.OpenFolder("a b:c")->OpenFile("f")), "2");
  EXPECT_EQ(Content(roots.OpenFolder("./de:german")->OpenFile("f")), "3");
  EXPECT_EQ(Content(roots.OpenFolder("de:german")->OpenFile("adapter_config.json")), "german");
  EXPECT_EQ(Content(Unnamed().OpenFolder("de:german")->OpenFile("f")), "3");
}

TEST_F(SourceRootsTest, WithoutAnUnnamedRootANameIsNeeded) {
  const SourceRoots roots = Named();
  EXPECT_THAT(roots.OpenFolder("de:german"), IsOk());
  for (const char* source : {"german", "fr:german", "a b:german", ":german", "./de:german"}) {
    EXPECT_THAT(roots.OpenFolder(source), HasReason(Reason::kInvalidField)) << source;
  }
  EXPECT_THAT(roots.OpenFolder("fr:german"), HasMessage(HasSubstr("unknown root \"fr\"")));
}

TEST_F(SourceRootsTest, RootsAreCheckedWhenTheyAreOpened) {
  const std::string path = temp_ / "main";
  EXPECT_THAT(SourceRoots::Open({{"", path}, {"", path}}), HasReason(Reason::kInvalidField));
  EXPECT_THAT(SourceRoots::Open({{"a", path}, {"a", path}}), HasReason(Reason::kInvalidField));
  for (const std::string& name :
       {"-a"s, ".a"s, "a b"s, "a/b"s, "a:b"s, "\u00e9"s, std::string(129, 'a')}) {
    EXPECT_THAT(SourceRoots::Open({{name, path}}), HasReason(Reason::kInvalidField)) << name;
  }
  EXPECT_THAT(SourceRoots::Open({{std::string(128, 'a'), path}, {"_.-0", path}}), IsOk());
  EXPECT_THAT(SourceRoots::Open({{"", path + "/missing"}}), HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(SourceRoots::Open({{"", path + "/single.gguf"}}), HasReason(Reason::kSourceNotFound));
  ASSERT_OK_AND_ASSIGN(const SourceRoots none, SourceRoots::Open({}));
  EXPECT_THAT(none.names(), IsEmpty());
  EXPECT_THAT(none.OpenFolder("french"), HasReason(Reason::kInvalidField));
}

TEST_F(SourceRootsTest, AFolderOutlivesItsRoots) {
  auto roots = std::make_unique<SourceRoots>(Unnamed());
  ASSERT_OK_AND_ASSIGN(const SourceFolder folder, roots->OpenFolder("french"));
  roots.reset();
  EXPECT_EQ(Content(folder.OpenFile("adapter_config.json")), "{}");
}

TEST_F(SourceRootsTest, PipesSocketsAndDevicesAreNotOpened) {
  const std::string special = temp_ / "main/special";
  std::filesystem::create_directory(special);
  ASSERT_EQ(mkfifo((special + "/fifo").c_str(), 0600), 0);
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  std::strncpy(address.sun_path, (special + "/socket").c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  close(listener);
  const bool has_device = mknod((special + "/device").c_str(), S_IFCHR | 0600, makedev(1, 5)) == 0;
  const SourceRoots roots = Unnamed();
  ASSERT_OK_AND_ASSIGN(const SourceFolder folder, roots.OpenFolder("special"));
  // A FIFO without a writer would block whoever opens it; this test would not end.
  for (const std::string& name : {"fifo"s, "socket"s, "device"s}) {
    if (name == "device" && !has_device) continue;  // only root makes devices
    EXPECT_THAT(folder.OpenFile(name), HasReason(Reason::kSourceNotFound)) << name;
    EXPECT_THAT(roots.OpenFolder("special/" + name), HasReason(Reason::kSourceNotFound)) << name;
    EXPECT_THAT(roots.IsFile("special/" + name), HasReason(Reason::kSourceNotFound)) << name;
  }
}

// Takes root's rights away for a while: permissions mean nothing to root.
class AsNobody {
 public:
  AsNobody() : was_root_(geteuid() == 0) {
    if (was_root_) Become(65534);
  }
  ~AsNobody() {
    if (was_root_) Become(0);
  }

 private:
  static void Become(uid_t user) {
    ASSERT_EQ(seteuid(user), 0);
    prctl(PR_SET_DUMPABLE, 1);  // else /proc/self belongs to root from now on
  }
  const bool was_root_;
};

TEST_F(SourceRootsTest, WhatMayNotBeReadIsNotFound) {
  temp_.Write("main/closed/file", "x");
  temp_.Write("main/unsearchable/file", "x");
  temp_.Write("main/open/file", "x");
  chmod(temp_.path().c_str(), 0755);
  chmod((temp_ / "main/closed").c_str(), 0);
  chmod((temp_ / "main/unsearchable").c_str(), 0444);
  chmod((temp_ / "main/open/file").c_str(), 0);
  const SourceRoots roots = Unnamed();
  {
    const AsNobody nobody;
    for (const char* source : {"closed", "closed/file", "unsearchable/file"}) {
      const auto result = roots.OpenFolder(source);
      EXPECT_THAT(result, HasReason(Reason::kSourceNotFound)) << source;
      EXPECT_THAT(result, HasMessage(HasSubstr("Permission denied"))) << source;
    }
    ASSERT_OK_AND_ASSIGN(const SourceFolder folder, roots.OpenFolder("open"));
    EXPECT_THAT(folder.OpenFile("file"), HasReason(Reason::kSourceNotFound));
    EXPECT_THAT(folder.OpenFile("file"), HasMessage(HasSubstr("Permission denied")));
  }
  chmod((temp_ / "main/closed").c_str(), 0755);
  chmod((temp_ / "main/unsearchable").c_str(), 0755);
}

TEST_F(SourceRootsTest, AHugeFolderIsRefused) {
  const std::string huge = temp_ / "main/huge";
  std::filesystem::create_directory(huge);
  const std::string first = huge + "/0";
  ASSERT_EQ(close(creat(first.c_str(), 0600)), 0);
  // One file with many names; file systems allow a few ten thousand names each.
  std::string source = first;
  for (int i = 1; i <= kMaxFolderEntries; ++i) {
    const std::string name = huge + "/" + std::to_string(i);
    if (i % 30'000 == 0 || link(source.c_str(), name.c_str()) != 0) {
      ASSERT_EQ(close(creat(name.c_str(), 0600)), 0);
      source = name;
    }
  }
  EXPECT_THAT(Unnamed().OpenFolder("huge"), HasReason(Reason::kSourceNotFound));
  ASSERT_EQ(unlink(first.c_str()), 0);
  ASSERT_OK_AND_ASSIGN(const SourceFolder folder, Unnamed().OpenFolder("huge"));
  EXPECT_EQ(folder.entries().size(), static_cast<size_t>(kMaxFolderEntries));
}

}  // namespace
}  // namespace adapterd
