// Public ids: made from a template, unique over all names.
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

class PublicIdTest : public RegistryTest {
 protected:
  PublicIdTest() { sources_.Put("a"); }

  std::string IdOf(const std::string& name) { return registry_->Get(name)->public_id; }
};
INSTANTIATE_TEST_SUITE_P(Threads, PublicIdTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(PublicIdTest, TheTemplateIsFilledIn) {
  const std::pair<const char*, const char*> cases[] = {
      {"{base}:{name}", "base:x"},          {"{name}", "x"},
      {"{name}/{name}@{base}", "x/x@base"}, {"fixed", "fixed"},
      {"{other}{name}", "{other}x"},
  };
  for (const auto& [id_template, expected] : cases) {
    Start(kRoomy, id_template);
    ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Request("x")));
    EXPECT_EQ(result.adapter.public_id, expected) << id_template;
  }
}

TEST_P(PublicIdTest, ABaseModelIsNotReadAsATemplate) {
  FakeContent content;
  content.base_model = "{base}{name}";
  sources_.Put("a", content);
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Request("x")));
  EXPECT_EQ(result.adapter.public_id, "{base}{name}:x");
}

TEST_P(PublicIdTest, TwoNamesCannotShareOne) {
  Start(kRoomy, "{base}");
  ASSERT_THAT(Load(Request("x")), IsOk());
  const int64_t used = budget_->used();
  const absl::StatusOr<LoadResult> refused = Load(Request("y"));
  EXPECT_THAT(refused, HasReason(Reason::kAdapterExists));
  EXPECT_THAT(refused, HasMessage(::testing::HasSubstr("\"x\"")));
  EXPECT_EQ(budget_->used(), used);
  EXPECT_EQ(sources_["a"].reads, 1);
  EXPECT_THAT(Load(Request("x")), IsOk());
}

TEST_P(PublicIdTest, AnUnloadReleasesIt) {
  Start(kRoomy, "{base}");
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_THAT(Unload(UnloadOf("x")), IsOk());
  EXPECT_THAT(Load(Request("y")), IsOk());
}

TEST_P(PublicIdTest, AFailedLoadReleasesIt) {
  Start(kRoomy, "{base}");
  FakeContent broken;
  broken.read_error = Error(Reason::kNonFiniteWeights, "NaN");
  sources_.Put("broken", broken);
  ASSERT_THAT(Load(Request("x", "broken")), HasReason(Reason::kNonFiniteWeights));
  EXPECT_THAT(Load(Request("y")), IsOk());
}

TEST_P(PublicIdTest, AReplaceMovesToItsOwn) {
  Start(kRoomy, "{base}");
  ASSERT_THAT(Load(Request("x")), IsOk());
  FakeContent other;
  other.base_model = "other";
  other.text = "2";
  sources_.Put("b", other);
  ASSERT_THAT(Load(Replacing(Request("x", "b"))), IsOk());
  EXPECT_EQ(IdOf("x"), "other");
  EXPECT_THAT(Load(Request("y")), IsOk());  // "base" is free again
  EXPECT_THAT(Load(Request("z", "b")), HasReason(Reason::kAdapterExists));
}

TEST_P(PublicIdTest, AFailedReplaceKeepsTheOldOneAndReleasesTheNew) {
  Start(kRoomy, "{base}");
  ASSERT_THAT(Load(Request("x")), IsOk());
  FakeContent other;
  other.base_model = "other";
  other.text = "2";
  other.modules[0].in_features = 1 << 28;  // over the budget
  sources_.Put("b", other);
  ASSERT_THAT(Load(Replacing(Request("x", "b"))), HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_EQ(IdOf("x"), "base");
  EXPECT_THAT(Load(Request("y")), HasReason(Reason::kAdapterExists));
  other.modules[0].in_features = 8;
  sources_.Put("b", other);
  EXPECT_THAT(Load(Request("z", "b")), IsOk());
}

TEST_P(PublicIdTest, AReplaceCannotTakeAnothersId) {
  Start(kRoomy, "{base}");
  FakeContent other;
  other.base_model = "other";
  other.text = "2";
  sources_.Put("b", other);
  ASSERT_THAT(Load(Request("x", "a")), IsOk());
  ASSERT_THAT(Load(Request("y", "b")), IsOk());
  EXPECT_THAT(Load(Replacing(Request("x", "b"))), HasReason(Reason::kAdapterExists));
  EXPECT_EQ(IdOf("x"), "base");
  EXPECT_EQ(IdOf("y"), "other");
  EXPECT_EQ(registry_->Get("x")->digest, DigestOf(FakeContent()));
}

}  // namespace
}  // namespace adapterd
