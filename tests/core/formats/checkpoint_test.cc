#include "core/formats/checkpoint.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/testing/checkpoint_builder.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kFirst[] = "model-00001-of-00002.safetensors";
constexpr char kSecond[] = "model-00002-of-00002.safetensors";

std::vector<std::string> Names(const Checkpoint& checkpoint) {
  std::vector<std::string> names;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) names.push_back(tensor.name);
  return names;
}

class CheckpointTest : public ::testing::Test {
 protected:
  absl::StatusOr<Checkpoint> Open(const std::string& folder = "m") const {
    const auto roots = SourceRoots::Open({{"", temp_.path() / "root"}});
    const auto opened = roots->OpenFolder(folder);
    if (!opened.ok()) return opened.status();
    return Checkpoint::Open(*opened);
  }

  // A tensor "a" in the first shard, "b" in the second.
  static CheckpointBuilder Sharded() {
    CheckpointBuilder builder;
    builder.Add("a", {2, 3}, DType::kF32, kFirst).Add("b", {4}, DType::kBF16, kSecond);
    return builder;
  }
  void Write(const CheckpointBuilder& builder) const { builder.Write(temp_, "root/m"); }
  void WriteFile(const std::string& name, std::string_view content) const {
    temp_.Write("root/m/" + name, content);
  }

  const TempDir temp_;
};

TEST_F(CheckpointTest, OneFile) {
  Write(CheckpointBuilder().Add("b", {2, 3}).Add("a", {4}, DType::kF16));
  ASSERT_OK_AND_ASSIGN(const Checkpoint checkpoint, Open());
  EXPECT_THAT(Names(checkpoint), ElementsAre("a", "b"));
  const CheckpointTensor* tensor = checkpoint.Find("b");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->dtype, DType::kF32);
  EXPECT_THAT(tensor->shape, ElementsAre(2, 3));
  EXPECT_EQ(tensor->bytes, 24);
  EXPECT_EQ(checkpoint.Find("c"), nullptr);
  EXPECT_EQ(checkpoint.Find(""), nullptr);
  ASSERT_EQ(checkpoint.identity().size(), 1u);
  EXPECT_EQ(checkpoint.identity()[0].first, "m/model.safetensors");
  EXPECT_THAT(checkpoint.CheckUnchanged(), IsOk());
}

TEST_F(CheckpointTest, Shards) {
  Write(Sharded());
  ASSERT_OK_AND_ASSIGN(const Checkpoint checkpoint, Open());
  EXPECT_THAT(Names(checkpoint), ElementsAre("a", "b"));
  EXPECT_EQ(checkpoint.files()[checkpoint.Find("a")->file].name(), std::string("m/") + kFirst);
  EXPECT_EQ(checkpoint.files()[checkpoint.Find("b")->file].name(), std::string("m/") + kSecond);
  std::vector<std::string> files;
  for (const auto& [name, identity] : checkpoint.identity()) files.push_back(name);
  EXPECT_THAT(files, ElementsAre(std::string("m/") + kFirst, std::string("m/") + kSecond,
                                 "m/model.safetensors.index.json"));
}

TEST_F(CheckpointTest, OneFileIsPreferredToAnIndex) {
  Write(Sharded());
  Write(CheckpointBuilder().Add("whole", {1}));
  EXPECT_THAT(Names(*Open()), ElementsAre("whole"));
}

TEST_F(CheckpointTest, TensorsThatTheIndexLeavesOutCount) {
  Write(Sharded());
  WriteFile("model.safetensors.index.json",
            std::string(R"({"weight_map": {"a": ")") + kFirst + R"("}})");
  EXPECT_THAT(Names(*Open()), ElementsAre("a"));
  Write(Sharded().Add("c", {1}, DType::kF32, kFirst));
  WriteFile("model.safetensors.index.json",
            std::string(R"({"weight_map": {"a": ")") + kFirst + R"("}})");
  EXPECT_THAT(Names(*Open()), ElementsAre("a", "c"));
}

TEST_F(CheckpointTest, ACacheOfTheHubWithItsLinks) {
  Sharded().Write(temp_, "root/hub/made");
  const std::filesystem::path hub = temp_ / "root/hub";
  std::filesystem::create_directories(hub / "blobs");
  std::filesystem::create_directories(hub / "snapshots/0a1b");
  for (const char* name : {kFirst, kSecond, "model.safetensors.index.json"}) {
    std::filesystem::rename(hub / "made" / name, hub / "blobs" / (std::string("blob-") + name));
    std::filesystem::create_symlink(std::string("../../blobs/blob-") + name,
                                    hub / "snapshots/0a1b" / name);
  }
  ASSERT_OK_AND_ASSIGN(const Checkpoint checkpoint, Open("hub/snapshots/0a1b"));
  EXPECT_THAT(Names(checkpoint), ElementsAre("a", "b"));
}

TEST_F(CheckpointTest, NoShardLeavesTheRoot) {
  CheckpointBuilder().Add("a", {1}, DType::kF32, "secret.safetensors").Write(temp_, "outside");
  for (const std::string& file :
       {std::string("../../outside/secret.safetensors"),
        (temp_ / "outside/secret.safetensors").string(), std::string("link.safetensors")}) {
    Write(CheckpointBuilder().Add("b", {1}, DType::kF32, kFirst).Map("a", file));
    std::filesystem::remove(temp_ / "root/m/link.safetensors");
    std::filesystem::create_symlink("../../outside/secret.safetensors",
                                    temp_ / "root/m/link.safetensors");
    EXPECT_THAT(Open(), HasReason(Reason::kPathOutsideRoot)) << file;
  }
}

TEST_F(CheckpointTest, AMissingShardIsNamed) {
  Write(Sharded().Map("c", "model-00003.safetensors"));
  const auto checkpoint = Open();
  EXPECT_THAT(checkpoint, HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(
      checkpoint,
      HasMessage(HasSubstr("index.json\" names this shard: \"m/model-00003.safetensors\"")));
  EXPECT_THAT(checkpoint, HasErrorMetadata("file", "m/model-00003.safetensors"));
}

TEST_F(CheckpointTest, AShardMustHoldWhatTheIndexSays) {
  Write(Sharded().Map("missing", kSecond));
  auto checkpoint = Open();
  EXPECT_THAT(checkpoint, HasReason(Reason::kMalformedTensorFile));
  EXPECT_THAT(checkpoint, HasMessage(HasSubstr("\"missing\": is missing here")));
  EXPECT_THAT(checkpoint, HasErrorMetadata("tensor", "missing"));
  EXPECT_THAT(checkpoint, HasErrorMetadata("file", std::string("m/") + kSecond));

  Write(Sharded().Map("a", kSecond));
  checkpoint = Open();
  // The first shard is not even named any more.
  EXPECT_THAT(checkpoint, HasReason(Reason::kMalformedTensorFile));
  EXPECT_THAT(checkpoint, HasErrorMetadata("tensor", "a"));

  Write(Sharded().Add("c", {1}, DType::kF32, kFirst).Map("a", kSecond));
  EXPECT_THAT(Open(), HasErrorMetadata("tensor", "a"));
}

TEST_F(CheckpointTest, ATensorInTwoShardsIsRefused) {
  Write(Sharded().Add("c", {1}, DType::kF32, kFirst).Add("c", {1}, DType::kF32, kSecond));
  const auto checkpoint = Open();
  EXPECT_THAT(checkpoint, HasReason(Reason::kMalformedTensorFile));
  EXPECT_THAT(checkpoint, HasErrorMetadata("tensor", "c"));
  EXPECT_THAT(checkpoint, HasMessage(AllOf(HasSubstr(kFirst), HasSubstr(kSecond))));
}

TEST_F(CheckpointTest, BrokenFilesAreTold) {
  Write(Sharded());
  WriteFile(kSecond, "PK\3\4 an archive of torch.save");
  EXPECT_THAT(Open(), HasReason(Reason::kUnsafeFormat));
  WriteFile(kSecond, "short");
  EXPECT_THAT(Open(), HasReason(Reason::kMalformedTensorFile));
  EXPECT_THAT(Open(), HasErrorMetadata("file", std::string("m/") + kSecond));
  WriteFile(kSecond, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n");
  EXPECT_THAT(Open(), HasMessage(HasSubstr("Git LFS pointer")));
  WriteFile("model.safetensors.index.json", "[]");
  EXPECT_THAT(Open(), HasReason(Reason::kMalformedTensorFile));
  EXPECT_THAT(Open(), HasErrorMetadata("file", "m/model.safetensors.index.json"));
}

TEST_F(CheckpointTest, AHugeIndexIsNotRead) {
  Write(Sharded());
  const std::string path = temp_ / "root/m/model.safetensors.index.json";
  ASSERT_EQ(truncate(path.c_str(), kMaxCheckpointIndexBytes + 1), 0);
  EXPECT_THAT(Open(), HasReason(Reason::kMalformedTensorFile));
  EXPECT_THAT(Open(), HasMessage(HasSubstr("more than the 64000000 allowed")));
}

struct Folder {
  std::vector<std::string> files;
  Reason reason;
  const char* message;
};

TEST_F(CheckpointTest, FoldersWithoutACheckpoint) {
  const Folder cases[] = {
      {{}, Reason::kSourceNotFound, "is empty"},
      {{"config.json", "README.md"}, Reason::kSourceNotFound, "expected model.safetensors or"},
      {{"training_args.bin"}, Reason::kSourceNotFound, "expected model.safetensors or"},
      {{"model-00001-of-00002.safetensors"},
       Reason::kSourceNotFound,
       "found \"model-00001-of-00002.safetensors\""},
      {{"adapter_model.safetensors", "pytorch_model.bin"},
       Reason::kSourceNotFound,
       "found \"adapter_model.safetensors\""},
      {{"config.json", "pytorch_model.bin"},
       Reason::kUnsafeFormat,
       "only pickled weights (\"pytorch_model.bin\")"},
      {{"pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"},
       Reason::kUnsafeFormat,
       "convert them to safetensors"},
      {{"consolidated.00.pth"}, Reason::kUnsafeFormat, "consolidated.00.pth"},
      {{"a.ckpt", "b.ckpt", "c.ckpt", "d.ckpt", "e.ckpt", "f.ckpt"},
       Reason::kUnsafeFormat,
       "\"e.ckpt\" and 1 more"},
  };
  int number = 0;
  for (const Folder& folder : cases) {
    const std::string name = fmt::format("f{}", number++);
    std::filesystem::create_directories(temp_ / ("root/" + name));
    for (const std::string& file : folder.files) temp_.Write("root/" + name + "/" + file, "x");
    const auto checkpoint = Open(name);
    EXPECT_THAT(checkpoint, HasReason(folder.reason)) << folder.message;
    EXPECT_THAT(checkpoint, HasMessage(HasSubstr(folder.message)));
    EXPECT_THAT(checkpoint, HasErrorMetadata("file", name));
  }
}

TEST_F(CheckpointTest, AChangedShardIsNoticed) {
  Write(Sharded());
  ASSERT_OK_AND_ASSIGN(const Checkpoint checkpoint, Open());
  const auto before = checkpoint.identity();
  Write(Sharded().Add("c", {1}, DType::kF32, kSecond));
  EXPECT_THAT(checkpoint.CheckUnchanged(), HasReason(Reason::kSourceChanged));
  EXPECT_NE(Open()->identity(), before);
}

std::string Read(const Checkpoint& checkpoint, const char* tensor, int64_t row_elements,
                 int64_t first_row, int64_t bytes) {
  std::string out(bytes, '\0');
  const absl::Status status = checkpoint.ReadRows(*checkpoint.Find(tensor), row_elements, first_row,
                                                  std::as_writable_bytes(std::span(out)));
  return status.ok() ? out : std::string(status.message());
}

TEST_F(CheckpointTest, RowsAreReadInBlocks) {
  Write(Sharded().Add("e", {2, 2, 2}, DType::kU8, kSecond));  // the third: begins with 2
  ASSERT_OK_AND_ASSIGN(const Checkpoint checkpoint, Open());
  std::string a(24, '\0');
  for (int i = 0; i < 24; ++i) a[i] = static_cast<char>(i);
  EXPECT_EQ(Read(checkpoint, "a", 3, 0, 24), a);
  EXPECT_EQ(Read(checkpoint, "a", 3, 1, 12), a.substr(12));
  EXPECT_EQ(Read(checkpoint, "a", 3, 2, 0), "");
  EXPECT_EQ(Read(checkpoint, "a", 1, 5, 4), a.substr(20));
  EXPECT_EQ(Read(checkpoint, "b", 4, 0, 8), "\1\2\3\4\5\6\7\10");
  EXPECT_EQ(Read(checkpoint, "e", 2, 1, 4), "\4\5\6\7");
}

TEST_F(CheckpointTest, RowsOutsideATensorAreRefused) {
  Write(Sharded().Add("f4", {2, 3, 2}, DType::kF4, kFirst));
  ASSERT_OK_AND_ASSIGN(const Checkpoint checkpoint, Open());
  struct Case {
    const char* tensor;
    int64_t row_elements, first_row;
    size_t bytes;
    const char* message;
  };
  const Case cases[] = {
      {"a", 3, 0, 36, "has 2 rows of 3 elements, asked for 3 from 0 on"},
      {"a", 3, 2, 12, "asked for 1 from 2 on"},
      {"a", 3, -1, 12, "asked for 1 from -1 on"},
      {"a", 3, INT64_MAX, 12, "asked for 1 from"},
      {"a", 3, 0, 13, "13 bytes are not whole rows of 12"},
      {"a", 0, 0, 0, "rows of 0 elements"},
      {"a", -3, 0, 12, "rows of -3 elements"},
      {"a", INT64_MAX, 0, 12, "not whole bytes"},
      {"f4", 3, 0, 6, "rows of 3 elements are not whole bytes"},
  };
  for (const Case& bad : cases) {
    std::vector<std::byte> out(bad.bytes);
    const absl::Status status =
        checkpoint.ReadRows(*checkpoint.Find(bad.tensor), bad.row_elements, bad.first_row, out);
    EXPECT_THAT(status, HasReason(Reason::kShapeMismatch)) << bad.message;
    EXPECT_THAT(status, HasMessage(HasSubstr(bad.message)));
    EXPECT_THAT(status, HasErrorMetadata("tensor", bad.tensor));
  }
}

}  // namespace
}  // namespace adapterd
