// What was uploaded is opened by its key, and from nowhere else.
#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsNull;
using ::testing::NotNull;

class OpenStoredTest : public ::testing::Test {
 protected:
  OpenStoredTest() {
    own_.AddPair("m.0.q_proj").Write();
    uploaded_.AddPair("m.7.q_proj").Write();
  }

  static std::shared_ptr<const SourceRoots> RootsAt(const TempDir& dir) {
    return std::make_shared<const SourceRoots>(
        SourceRoots::Open({{"", dir.path().string()}}).value());
  }

  // With the same folder "a" below both roots, of different content.
  AdapterOpener Opener() const {
    return OpenFromRoots(RootsAt(own_.dir()), RootsAt(own_.dir()), RootsAt(uploaded_.dir()));
  }

  static SourceSpec Stored(const std::string& key) {
    SourceSpec spec;
    spec.stored = key;
    return spec;
  }

  AdapterFolder own_;
  AdapterFolder uploaded_;
  ProblemList problems_;
};

TEST_F(OpenStoredTest, AKeyAndASourceOfOneNameAreToldApart) {
  const auto uploaded = Opener()(Stored("a"), problems_);
  ASSERT_THAT(uploaded, NotNull()) << problems_.ToStatus();
  EXPECT_EQ(uploaded->manifest()->modules.at(0).path, "m.7.q_proj");
  const auto own = Opener()({"a", "", ""}, problems_);
  ASSERT_THAT(own, NotNull()) << problems_.ToStatus();
  EXPECT_EQ(own->manifest()->modules.at(0).path, "m.0.q_proj");
}

TEST_F(OpenStoredTest, TheBaseModelIsChecked) {
  SourceSpec spec = Stored("a");
  spec.base_model = "another";
  Opener()(spec, problems_);
  EXPECT_THAT(problems_.items(),
              ElementsAre(IsError(Reason::kBaseModelMismatch, "base_model_name_or_path")));
}

TEST_F(OpenStoredTest, AKeyThatIsGoneIsAnError) {
  EXPECT_THAT(Opener()(Stored("b"), problems_), IsNull());
  EXPECT_THAT(problems_.ToStatus(), HasReason(Reason::kSourceNotFound));
}

TEST_F(OpenStoredTest, AKeyLeavesTheStoreNoMoreThanASource) {
  EXPECT_THAT(Opener()(Stored("../a"), problems_), IsNull());
  EXPECT_THAT(problems_.ToStatus(), HasReason(Reason::kPathOutsideRoot));
}

TEST_F(OpenStoredTest, WithoutAStoreThereIsNothing) {
  const AdapterOpener opener = OpenFromRoots(RootsAt(own_.dir()), RootsAt(own_.dir()));
  EXPECT_THAT(opener(Stored("a"), problems_), IsNull());
  EXPECT_THAT(problems_.ToStatus(), HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(problems_.ToStatus(), HasMessage(HasSubstr("nothing that was uploaded")));
}

}  // namespace
}  // namespace adapterd
