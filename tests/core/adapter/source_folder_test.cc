// Which files of a source are taken, through the opener.
#include "core/adapter/source_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/adapter/peft_config.h"
#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::NotNull;

absl::Status OpenStatus(const TempDir& dir, const std::string& source) {
  ProblemList problems;
  const auto reader = OpenerAt(dir.path())({source, ""}, problems);
  EXPECT_EQ(reader == nullptr, problems.has_errors());
  return problems.ToStatus();
}

TEST(SourceFolderTest, NothingThere) {
  TempDir dir;
  std::filesystem::create_directory(dir / "empty");
  dir.Write("readme/README.md", "x");
  dir.Write("config/adapter_config.json", R"({"peft_type": "LORA", "target_modules": ["q"]})");
  for (const char* source : {"missing", "empty", "readme", "config"}) {
    EXPECT_THAT(OpenStatus(dir, source), HasReason(Reason::kSourceNotFound)) << source;
  }
  EXPECT_THAT(OpenStatus(dir, "../x"), HasReason(Reason::kPathOutsideRoot));
  EXPECT_THAT(OpenStatus(dir, "/etc"), HasReason(Reason::kPathOutsideRoot));
  EXPECT_THAT(OpenStatus(dir, ""), HasReason(Reason::kInvalidField));
}

TEST(SourceFolderTest, SingleFiles) {
  TempDir dir;
  for (const char* name : {"a.safetensors", "a.gguf", "a.json", "a"}) {
    dir.Write(name, "x");
    EXPECT_THAT(OpenStatus(dir, name), HasReason(Reason::kMalformedTensorFile)) << name;
  }
  for (const char* name : {"a.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl"}) {
    dir.Write(name, "x");
    EXPECT_THAT(OpenStatus(dir, name), HasReason(Reason::kUnsafeFormat)) << name;
  }
}

class WeightsChoiceTest : public ::testing::Test {
 protected:
  WeightsChoiceTest() { folder_.AddPair("q_proj").AddPair("v_proj").Write(); }

  void RenameWeights(const std::string& name) {
    std::filesystem::rename(folder_.dir() / AdapterFolder::kWeights, folder_.dir() / "a" / name);
  }

  AdapterFolder folder_;
};

TEST_F(WeightsChoiceTest, KnownNamesAndTheOnlyOne) {
  std::string current = "adapter_model.safetensors";
  for (const char* name : {"adapters.safetensors", "pytorch_lora_weights.safetensors",
                           "anything.safetensors", "adapter_model.safetensors"}) {
    std::filesystem::rename(folder_.dir() / "a" / current, folder_.dir() / "a" / name);
    current = name;
    const auto reader = folder_.Open();
    ASSERT_THAT(reader, NotNull()) << name;
    EXPECT_EQ(reader->identity().files[1].first, std::string("a/") + name);
    EXPECT_THAT(folder_.problems().items(), IsEmpty());
  }
}

TEST_F(WeightsChoiceTest, OthersAreLeftAloneWithAWarning) {
  for (const char* other : {"adapters.safetensors", "model.gguf", "adapter_model.bin"}) {
    folder_.dir().Write(std::string("a/") + other, "x");
  }
  // What trainers leave in a checkpoint is no weights.
  for (const char* state : {"optimizer.pt", "training_args.bin", "rng_state_0.pth", "README.md"}) {
    folder_.dir().Write(std::string("a/") + state, "x");
  }
  ASSERT_THAT(folder_.Open(), NotNull());
  EXPECT_THAT(folder_.problems().warnings(),
              ElementsAre(AllOf(HasSubstr("\"adapters.safetensors\""), HasSubstr("\"model.gguf\""),
                                HasSubstr("\"adapter_model.bin\""), Not(HasSubstr("optimizer")),
                                Not(HasSubstr("training_args")), Not(HasSubstr("rng")))));
}

TEST_F(WeightsChoiceTest, SeveralWithoutAKnownNameAreNoChoice) {
  RenameWeights("one.safetensors");
  folder_.dir().Write("a/two.safetensors", "x");
  EXPECT_EQ(folder_.Open(), nullptr);
  EXPECT_THAT(folder_.problems().ToStatus(),
              AllOf(HasReason(Reason::kSourceNotFound), HasMessage(HasSubstr("two.safetensors"))));
}

TEST_F(WeightsChoiceTest, PicklesAloneAreUnsafeAndStayClosed) {
  RenameWeights("adapter_model.bin");
  std::filesystem::permissions(folder_.dir() / "a/adapter_model.bin", std::filesystem::perms::none);
  EXPECT_EQ(folder_.Open(), nullptr);
  EXPECT_THAT(folder_.problems().items(), ElementsAre(IsError(Reason::kUnsafeFormat, "")));
}

TEST_F(WeightsChoiceTest, TrainerStateAloneIsNoAdapter) {
  RenameWeights("optimizer.pt");
  EXPECT_EQ(folder_.Open(), nullptr);
  EXPECT_THAT(folder_.problems().items(), ElementsAre(IsError(Reason::kSourceNotFound, "")));
}

// The config beside it is its own.
TEST_F(WeightsChoiceTest, AFileMayBeNamedInsteadOfItsFolder) {
  RenameWeights("second");
  folder_.dir().Write("a/adapter_model.safetensors", "x");
  ProblemList problems;
  const auto reader = OpenerAt(folder_.dir().path())({"a/second", ""}, problems);
  ASSERT_THAT(reader, NotNull());
  EXPECT_THAT(problems.items(), IsEmpty());
  EXPECT_EQ(reader->identity().files[0].first, AdapterFolder::kConfig);
  EXPECT_EQ(reader->identity().files[1].first, "a/second");
}

TEST_F(WeightsChoiceTest, ConfigIsNeeded) {
  std::filesystem::remove(folder_.dir() / AdapterFolder::kConfig);
  EXPECT_EQ(folder_.Open(), nullptr);
  EXPECT_THAT(folder_.problems().ToStatus(), AllOf(HasReason(Reason::kSourceNotFound),
                                                   HasMessage(HasSubstr("adapter_config.json"))));
}

TEST_F(WeightsChoiceTest, LargeConfigsAreNotRead) {
  folder_.dir().Write(AdapterFolder::kConfig, "");
  std::filesystem::resize_file(folder_.dir() / AdapterFolder::kConfig, kMaxConfigBytes + 1);
  EXPECT_EQ(folder_.Open(), nullptr);
  EXPECT_THAT(folder_.problems().items(), ElementsAre(IsError(Reason::kMalformedConfig, "")));
}

TEST_F(WeightsChoiceTest, ConfigAndWeightsProblemsComeTogether) {
  folder_.dir().Write(AdapterFolder::kConfig, "{");
  folder_.dir().Write(AdapterFolder::kWeights, "short");
  EXPECT_EQ(folder_.Open(), nullptr);
  EXPECT_THAT(folder_.problems().items(), ElementsAre(IsError(Reason::kMalformedConfig, ""),
                                                      IsError(Reason::kMalformedTensorFile, "")));
}

TEST_F(WeightsChoiceTest, SymlinksOutOfTheRootAreRefused) {
  TempDir elsewhere;
  elsewhere.Write("w.safetensors", ReadFile(folder_.dir() / AdapterFolder::kWeights));
  std::filesystem::remove(folder_.dir() / AdapterFolder::kWeights);
  std::filesystem::create_symlink(elsewhere / "w.safetensors",
                                  folder_.dir() / AdapterFolder::kWeights);
  EXPECT_EQ(folder_.Open(), nullptr);
  EXPECT_THAT(folder_.problems().ToStatus(), HasReason(Reason::kPathOutsideRoot));
}

}  // namespace
}  // namespace adapterd
