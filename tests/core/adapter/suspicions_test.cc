#include "core/adapter/suspicions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/core/adapter/adapter_folder.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Three sound modules of which a test spoils some.
class SuspicionsTest : public ::testing::Test {
 protected:
  SuspicionsTest() : magnitudes_(3, {.lora_b = 1, .any = 2}) {
    manifest_.base_model = "base";
    for (const char* path : {"m.0.q", "m.1.q", "m.2.q"}) {
      ModuleInfo info;
      info.path = path;
      info.rank = 4;
      info.in_features = 8;
      info.out_features = 4;
      info.scale = 2;
      manifest_.modules.push_back(info);
    }
  }

  std::vector<Problem> Warnings() const {
    ProblemList problems;
    WarnOfSuspicions(manifest_, magnitudes_, "f", problems);
    EXPECT_FALSE(problems.has_errors());
    return problems.items();
  }

  AdapterManifest manifest_;
  std::vector<ModuleMagnitudes> magnitudes_;
};

TEST_F(SuspicionsTest, ASoundAdapterHasNone) {
  EXPECT_THAT(Warnings(), IsEmpty());
  for (ModuleInfo& module : manifest_.modules) module.scale = -kSuspiciousScale;
  for (ModuleMagnitudes& magnitude : magnitudes_) magnitude.any = kSuspiciousMagnitude;
  EXPECT_THAT(Warnings(), IsEmpty());  // at the limits
}

TEST_F(SuspicionsTest, EachIsCountedAndNamesItsFirstModule) {
  struct Case {
    std::string what;
    std::function<void(ModuleInfo&, ModuleMagnitudes&)> spoil;
  };
  const std::vector<Case> cases = {
      {"zeros alone", [](ModuleInfo&, ModuleMagnitudes& max) { max.lora_b = 0; }},
      {"scale above 100", [](ModuleInfo& info, ModuleMagnitudes&) { info.scale = 100.5; }},
      {"scale above 100", [](ModuleInfo& info, ModuleMagnitudes&) { info.scale = -1000; }},
      {"rank above", [](ModuleInfo& info, ModuleMagnitudes&) { info.rank = 5; }},
      {"largest that F16", [](ModuleInfo&, ModuleMagnitudes& max) { max.any = 32'768; }},
  };
  const AdapterManifest sound = manifest_;
  const std::vector<ModuleMagnitudes> quiet = magnitudes_;
  for (const auto& [what, spoil] : cases) {
    manifest_ = sound;
    magnitudes_ = quiet;
    for (const size_t i : {1, 2}) spoil(manifest_.modules[i], magnitudes_[i]);
    const std::vector<Problem> warnings = Warnings();
    ASSERT_EQ(warnings.size(), 1u) << what;
    EXPECT_THAT(warnings[0], IsWarning(what));
    EXPECT_THAT(warnings[0].message, AllOf(HasSubstr("2 of 3 modules"), HasSubstr("\"m.1.q\"")));
    EXPECT_EQ(warnings[0].module, "m.1.q");
    EXPECT_EQ(warnings[0].file, "f");
  }
}

TEST_F(SuspicionsTest, TheRankOfAConvolutionMayPassItsChannels) {
  manifest_.modules[0].kind = ModuleKind::kConv;
  manifest_.modules[0].in_features = 1;
  manifest_.modules[0].kernel_elements = 9;
  EXPECT_THAT(Warnings(), IsEmpty());
}

TEST_F(SuspicionsTest, ReplacementsHaveNoPairToDoubt) {
  manifest_.modules[0].kind = ModuleKind::kReplacement;
  manifest_.modules[0].rank = 0;
  magnitudes_[0].lora_b = 0;
  EXPECT_THAT(Warnings(), IsEmpty());
  magnitudes_[0].any = 65'504;
  EXPECT_THAT(Warnings(), ElementsAre(IsWarning("1 of 3 modules hold values near")));
}

TEST_F(SuspicionsTest, AnUnknownBaseModelIsNamedOnce) {
  manifest_.base_model = "";
  EXPECT_THAT(Warnings(), ElementsAre(IsWarning("base model is not known")));
}

// What the reader finds in a file arrives here.
TEST(SuspicionsOfFilesTest, ZerosAndLargeValuesAreFoundInTheBytes) {
  AdapterFolder folder;
  folder.Config({{"target_modules", R"(["q_proj"])"}});
  folder.AddPair("m.0.q_proj").Add("m.1.q_proj.lora_A.weight", {2, 4});
  folder.AddBytes("m.1.q_proj.lora_B.weight", {3, 2}, DType::kF32, std::string(24, '\0'));
  folder.Add("m.2.q_proj.lora_A.weight", {2, 4});
  std::string large(12, '\0');
  large[3] = '\x78';  // 32768 in F16, of either sign
  large[2] = '\0';
  large[5] = '\xf8';
  folder.AddBytes("m.2.q_proj.lora_B.weight", {3, 2}, DType::kF16, large);
  const auto reader = folder.WriteAndOpen();
  ASSERT_NE(reader, nullptr) << folder.problems().ToStatus();
  EXPECT_THAT(folder.Read(*reader), IsOk());
  EXPECT_THAT(folder.problems().items(),
              ElementsAre(IsWarning("1 of 3 modules have a lora_B of zeros"),
                          IsWarning("1 of 3 modules hold values near")));
}

}  // namespace
}  // namespace adapterd
