#include "core/adapter/base_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/testing/checkpoint_builder.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::NotNull;

class BaseModelTest : public ::testing::Test {
 protected:
  BaseModelTest() { CheckpointBuilder().Add("a.weight", {2, 3}).Write(temp_, "m"); }

  std::unique_ptr<const BaseModel> Open(const std::string& source = "m") {
    problems_ = ProblemList();
    return BaseModel::Open(*SourceRoots::Open({{"", temp_.path()}}), source, problems_);
  }

  const TempDir temp_;
  ProblemList problems_;
};

TEST_F(BaseModelTest, WithItsConfig) {
  temp_.Write("m/config.json", R"({"model_type": "llama", "hidden_size": 3})");
  const auto base = Open();
  ASSERT_THAT(base, NotNull()) << problems_.ToStatus();
  EXPECT_THAT(problems_.items(), IsEmpty());
  EXPECT_EQ(base->source(), "m");
  EXPECT_EQ(base->geometry().model_type, "llama");
  EXPECT_THAT(base->checkpoint().Find("a.weight"), NotNull());
  std::vector<std::string> files;
  for (const auto& [name, identity] : base->identity()) files.push_back(name);
  EXPECT_THAT(files, ElementsAre("m/model.safetensors", "m/config.json"));
}

TEST_F(BaseModelTest, WithoutConfig) {
  const auto base = Open();
  ASSERT_THAT(base, NotNull());
  EXPECT_THAT(problems_.items(), IsEmpty());
  EXPECT_EQ(base->geometry().model_type, "");
  EXPECT_EQ(base->identity().size(), 1u);
}

TEST_F(BaseModelTest, ChangesOfEveryFileAreNoticed) {
  temp_.Write("m/config.json", "{}");
  auto base = Open();
  EXPECT_THAT(base->CheckUnchanged(), IsOk());
  temp_.Write("m/config.json", R"({"hidden_size": 3})");
  EXPECT_THAT(base->CheckUnchanged(), HasReason(Reason::kSourceChanged));
  base = Open();
  CheckpointBuilder().Add("b.weight", {2, 3}).Write(temp_, "m");
  EXPECT_THAT(base->CheckUnchanged(), HasReason(Reason::kSourceChanged));
}

struct Bad {
  const char* source;
  Reason reason;
  const char* message;
};

TEST_F(BaseModelTest, ErrorsNameTheField) {
  temp_.Write("empty/config.json", "{}");
  const Bad cases[] = {
      {"missing", Reason::kSourceNotFound, "\"missing\""},
      {"../m", Reason::kPathOutsideRoot, "\"../m\""},
      {"/etc", Reason::kPathOutsideRoot, "\"/etc\""},
      {"", Reason::kInvalidField, "is empty"},
      {"m/model.safetensors", Reason::kSourceNotFound, "is a file"},
      {"empty", Reason::kSourceNotFound, "holds no checkpoint"},
  };
  for (const Bad& bad : cases) {
    EXPECT_EQ(Open(bad.source), nullptr) << bad.source;
    EXPECT_THAT(problems_.ToStatus(), HasReason(bad.reason)) << bad.source;
    EXPECT_THAT(problems_.ToStatus(), HasMessage(HasSubstr(bad.message))) << bad.source;
    EXPECT_THAT(problems_.ToStatus(), HasErrorMetadata("field", "base_checkpoint")) << bad.source;
  }
}

TEST_F(BaseModelTest, ABrokenConfigIsAnError) {
  temp_.Write("m/config.json", R"({"hidden_size": "3"})");
  EXPECT_EQ(Open(), nullptr);
  EXPECT_THAT(problems_.ToStatus(), HasReason(Reason::kMalformedConfig));
  EXPECT_THAT(problems_.ToStatus(), HasErrorMetadata("file", "m/config.json"));
  EXPECT_THAT(problems_.ToStatus(), HasErrorMetadata("field", "hidden_size"));
  temp_.Write("m/config.json", std::string(kMaxBaseConfigBytes + 1, ' '));
  EXPECT_EQ(Open(), nullptr);
  EXPECT_THAT(problems_.ToStatus(), HasReason(Reason::kMalformedConfig));
}

}  // namespace
}  // namespace adapterd
