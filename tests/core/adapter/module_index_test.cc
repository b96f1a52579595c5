#include "core/adapter/module_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

ModuleSelector Path(std::string path) { return {std::move(path), "", std::nullopt}; }
ModuleSelector Target(std::string target, std::optional<int32_t> layer = std::nullopt) {
  return {"", std::move(target), layer};
}

TEST(LayerOfTest, IsTheFirstComponentThatIsANumber) {
  const std::vector<std::pair<std::string_view, std::optional<int32_t>>> cases = {
      {"model.layers.3.self_attn.q_proj", 3},
      {"transformer.h.11.attn.c_attn", 11},
      {"model.layers.7.mlp.experts.2.w1", 7},
      {"0", 0},
      {"a.007.b", 7},
      {"lm_head", std::nullopt},
      {"", std::nullopt},
      {"model.layer3.q", std::nullopt},
      {"model.3x.q", std::nullopt},
      {"model.-3.q", std::nullopt},
      {"model.2147483647.q", 2147483647},
      {"model.2147483648.q", std::nullopt},
      {"model.99999999999999999999.4.q", std::nullopt},
      {"a..5", 5},
  };
  for (const auto& [path, layer] : cases) EXPECT_EQ(LayerOf(path), layer) << path;
}

TEST(TargetOfTest, IsTheLastComponent) {
  EXPECT_EQ(TargetOf("model.layers.3.self_attn.q_proj"), "q_proj");
  EXPECT_EQ(TargetOf("lm_head"), "lm_head");
  EXPECT_EQ(TargetOf(""), "");
  EXPECT_EQ(TargetOf("a."), "");
}

TEST(CheckSelectorTest, ExactlyOneOfPathAndTarget) {
  EXPECT_THAT(CheckSelector(Path("a")), IsOk());
  EXPECT_THAT(CheckSelector(Target("a")), IsOk());
  EXPECT_THAT(CheckSelector(Target("a", 0)), IsOk());
  const std::vector<ModuleSelector> bad = {
      {}, {"a", "b", {}}, {"a", "", 3}, {"", "", 3}, {"", "b", -1}};
  for (const ModuleSelector& selector : bad) {
    EXPECT_THAT(CheckSelector(selector),
                AllOf(HasReason(Reason::kInvalidField), HasErrorMetadata("field", "module")))
        << selector.path << "|" << selector.target;
  }
}

TEST(SelectorStringTest, IsWhatErrorsCallIt) {
  EXPECT_EQ(SelectorString(Path("a.3.q")), "a.3.q");
  EXPECT_EQ(SelectorString(Target("q")), "q");
  EXPECT_EQ(SelectorString(Target("q", 3)), "q (layer 3)");
  EXPECT_EQ(SelectorString(Target("q\n")), "q\\x0a");
}

class ModuleIndexTest : public ::testing::Test {
 protected:
  const std::vector<std::string> paths_ = {
      "lm_head",                          // 0
      "model.layers.0.mlp.c_proj",        // 1
      "model.layers.0.attn.c_proj",       // 2
      "model.layers.0.self_attn.q_proj",  // 3
      "model.layers.1.attn.c_proj",       // 4
      "model.layers.1.self_attn.q_proj",  // 5
      "shared.q_proj2",                   // 6
  };
  const ModuleIndex index_{paths_};
};

TEST_F(ModuleIndexTest, FindsByPath) {
  for (size_t i = 0; i < paths_.size(); ++i) {
    ASSERT_OK_AND_ASSIGN(const size_t found, index_.Find(Path(paths_[i])));
    EXPECT_EQ(found, i);
  }
  for (const char* missing : {"self_attn.q_proj", "model.layers.2.self_attn.q_proj", "q_proj",
                              "base_model.model.lm_head", "lm_head."}) {
    EXPECT_THAT(index_.Find(Path(missing)),
                AllOf(HasReason(Reason::kModuleNotTargeted), HasErrorMetadata("module", missing)));
  }
}

TEST_F(ModuleIndexTest, FindsByTargetAndLayer) {
  ASSERT_OK_AND_ASSIGN(const size_t q0, index_.Find(Target("q_proj", 0)));
  EXPECT_EQ(q0, 3u);
  ASSERT_OK_AND_ASSIGN(const size_t q1, index_.Find(Target("self_attn.q_proj", 1)));
  EXPECT_EQ(q1, 5u);
  ASSERT_OK_AND_ASSIGN(const size_t whole,
                       index_.Find(Target("model.layers.1.self_attn.q_proj", 1)));
  EXPECT_EQ(whole, 5u);
  EXPECT_THAT(index_.Find(Target("q_proj", 2)), HasReason(Reason::kModuleNotTargeted));
  EXPECT_THAT(index_.Find(Target("k_proj", 0)), HasReason(Reason::kModuleNotTargeted));
}

TEST_F(ModuleIndexTest, MatchesWholeComponentsOnly) {
  for (const char* target :
       {"proj", "attn.q_proj", "_attn.q_proj", ".q_proj", "q_proj.", "q_pro"}) {
    EXPECT_THAT(index_.Find(Target(target, 0)), HasReason(Reason::kModuleNotTargeted)) << target;
  }
}

TEST(ModuleAliasTest, SecondNamesFindTheSameModule) {
  const std::vector<std::string> paths = {"model.layers.0.self_attn.q_proj", "model.layers.1.up"};
  const ModuleIndex index(paths, {{"blk.0.attn_q", 0}, {"blk.1.up", 1}, {"model.layers.1.up", 0}});
  EXPECT_EQ(index.Find({"blk.0.attn_q", "", {}}).value(), 0u);
  EXPECT_EQ(index.Find({"", "attn_q", 0}).value(), 0u);
  EXPECT_EQ(index.Find({"", "blk.0.attn_q", 0}).value(), 0u);
  EXPECT_EQ(index.Find({"model.layers.1.up", "", {}}).value(), 1u);  // a path goes before an alias
  EXPECT_EQ(index.Find({"", "q_proj", 0}).value(), 0u);
  EXPECT_THAT(index.Find({"blk.0", "", {}}), HasReason(Reason::kModuleNotTargeted));
  EXPECT_THAT(index.FindAll({"", "attn_q", 0}), ElementsAre(0));
}

// One that is called alike under both names is found once.
TEST(ModuleAliasTest, AModuleMatchesOnce) {
  const ModuleIndex index({"model.layers.0.mlp.up"}, {{"blk.0.up", 0}});
  EXPECT_EQ(index.Find({"", "up", 0}).value(), 0u);
  EXPECT_THAT(index.FindAll({"", "up", {}}), ElementsAre(0));
}

// GPT-2 has two c_proj a layer.
TEST_F(ModuleIndexTest, LongerTargetsTellTwinsApart) {
  EXPECT_THAT(index_.Find(Target("c_proj", 0)),
              AllOf(HasReason(Reason::kInvalidField),
                    HasMessage(AllOf(HasSubstr("model.layers.0.mlp.c_proj"),
                                     HasSubstr("model.layers.0.attn.c_proj")))));
  ASSERT_OK_AND_ASSIGN(const size_t mlp, index_.Find(Target("mlp.c_proj", 0)));
  EXPECT_EQ(mlp, 1u);
  ASSERT_OK_AND_ASSIGN(const size_t attn, index_.Find(Target("attn.c_proj", 0)));
  EXPECT_EQ(attn, 2u);
  ASSERT_OK_AND_ASSIGN(const size_t layer1, index_.Find(Target("c_proj", 1)));
  EXPECT_EQ(layer1, 4u);
}

TEST_F(ModuleIndexTest, WithoutLayerEveryLayerMatches) {
  EXPECT_THAT(index_.Find(Target("q_proj")), HasReason(Reason::kInvalidField));
  EXPECT_THAT(index_.FindAll(Target("q_proj")), ElementsAre(3, 5));
  ASSERT_OK_AND_ASSIGN(const size_t mlp, index_.Find(Target("mlp.c_proj")));
  EXPECT_EQ(mlp, 1u);
}

TEST_F(ModuleIndexTest, LayerlessModulesServeEveryLayer) {
  for (const std::optional<int32_t> layer :
       {std::optional<int32_t>(), std::optional<int32_t>(0), std::optional<int32_t>(41)}) {
    ASSERT_OK_AND_ASSIGN(const size_t head, index_.Find(Target("lm_head", layer)));
    EXPECT_EQ(head, 0u);
  }
}

TEST_F(ModuleIndexTest, FindAllOfABadSelectorIsEmpty) {
  EXPECT_THAT(index_.FindAll({}), IsEmpty());
  EXPECT_THAT(index_.FindAll({"lm_head", "lm_head", {}}), IsEmpty());
  EXPECT_THAT(index_.Find({}), HasReason(Reason::kInvalidField));
  EXPECT_THAT(ModuleIndex().FindAll(Path("lm_head")), IsEmpty());
}

TEST(ModuleIndexCandidatesTest, AtMostEightAreListed) {
  std::vector<std::string> paths;
  for (int i = 0; i < 9; ++i) paths.push_back("m." + std::to_string(i) + ".q");
  const absl::Status nine = ModuleIndex(paths).Find(Target("q")).status();
  EXPECT_THAT(nine, HasMessage(AllOf(HasSubstr("9 modules"), HasSubstr("m.7.q, ..."),
                                     Not(HasSubstr("m.8.q")))));
  paths.pop_back();
  const absl::Status eight = ModuleIndex(paths).Find(Target("q")).status();
  EXPECT_THAT(eight, HasMessage(AllOf(HasSubstr("m.7.q"), Not(HasSubstr("...")))));
}

TEST(ModuleIndexCandidatesTest, HostilePathsKeepTheMessageShort) {
  std::vector<std::string> paths;
  for (int i = 0; i < 9; ++i) paths.push_back(std::string(4000, 'x') + std::to_string(i) + ".q");
  const absl::Status status = ModuleIndex(paths).Find(Target("q")).status();
  EXPECT_LT(status.message().size(), 1024u);
}

}  // namespace
}  // namespace adapterd
