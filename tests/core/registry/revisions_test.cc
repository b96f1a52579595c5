// Kept revisions, aliases, and the way back.
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

class RevisionsTest : public RegistryTest {
 protected:
  // "x" at the last of these revisions, each from a source of its own.
  void LoadRevisions(size_t keep, const std::vector<std::string>& texts) {
    options_.keep_revisions = keep;
    Start(kRoomy);
    for (const std::string& text : texts) Replace(text);
  }
  void Replace(const std::string& text) {
    sources_.Put(text, ContentOf(text));
    ASSERT_THAT(Load(Replacing(Request("x", text))), IsOk());
  }
  std::vector<std::string> Kept() const { return registry_->Get("x")->kept_revisions; }
};
INSTANTIATE_TEST_SUITE_P(Threads, RevisionsTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(RevisionsTest, AsManyAreKeptAsWereAskedFor) {
  LoadRevisions(2, {"1", "2", "3", "4"});
  EXPECT_THAT(Kept(), ElementsAre(RevisionOf("3"), RevisionOf("2")));
  EXPECT_EQ(registry_->Get("x")->memory_bytes, 3 * Unit());
  EXPECT_EQ(budget_->used(), 3 * Unit());
  for (const char* text : {"2", "3", "4"}) {
    ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", RevisionOf(text)}}));
    EXPECT_EQ(handles[0]->revision(), RevisionOf(text));
  }
  const absl::StatusOr<Handles> gone = Acquire({{"x", RevisionOf("1")}});
  EXPECT_THAT(gone, HasReason(Reason::kRevisionMismatch));
  EXPECT_THAT(gone, HasErrorMetadata("actual", RevisionOf("4")));
}

TEST_P(RevisionsTest, NoneIsKeptUnlessAskedFor) {
  LoadRevisions(0, {"1", "2"});
  EXPECT_THAT(Kept(), IsEmpty());
  EXPECT_EQ(budget_->used(), Unit());
}

TEST_P(RevisionsTest, TwoRevisionsServeOneRequest) {
  LoadRevisions(1, {"1", "2"});
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", RevisionOf("1")}, {"x", ""}}));
  EXPECT_EQ(handles[0]->revision(), RevisionOf("1"));
  EXPECT_EQ(handles[1]->revision(), RevisionOf("2"));
}

TEST_P(RevisionsTest, ContentThatComesBackAsTheCurrentOneIsNotKeptTwice) {
  LoadRevisions(2, {"1", "2", "1"});
  EXPECT_EQ(registry_->Get("x")->digest.revision, RevisionOf("1"));
  EXPECT_THAT(Kept(), ElementsAre(RevisionOf("2")));
  EXPECT_EQ(budget_->used(), 2 * Unit());
}

TEST_P(RevisionsTest, AnUnloadFreesThemAll) {
  LoadRevisions(2, {"1", "2", "3"});
  ASSERT_OK_AND_ASSIGN(const UnloadResult unloaded, Unload(UnloadOf("x")));
  EXPECT_EQ(unloaded.freed_bytes, 3 * Unit());
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(RevisionsTest, AnAliasNamesARevisionAndKeepsIt) {
  LoadRevisions(1, {"1"});
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot aliased, SetAlias("x", "stable", RevisionOf("1")));
  EXPECT_THAT(aliased.aliases, ElementsAre(Pair("stable", RevisionOf("1"))));
  for (const char* text : {"2", "3", "4"}) Replace(text);
  EXPECT_THAT(Kept(), ElementsAre(RevisionOf("3"), RevisionOf("1")));
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", "", "stable"}, {"x", ""}}));
  EXPECT_EQ(handles[0]->revision(), RevisionOf("1"));
  EXPECT_EQ(handles[1]->revision(), RevisionOf("4"));

  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot moved, SetAlias("x", "stable", RevisionOf("4")));
  EXPECT_THAT(moved.aliases, ElementsAre(Pair("stable", RevisionOf("4"))));
  EXPECT_THAT(moved.kept_revisions, ElementsAre(RevisionOf("3")));
  EXPECT_NE(moved.etag, aliased.etag);
  EXPECT_EQ(registry_->Get("x")->memory_bytes, 2 * Unit());
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot removed, SetAlias("x", "stable", ""));
  EXPECT_THAT(removed.aliases, IsEmpty());
  EXPECT_THAT(Acquire({{"x", "", "stable"}}), HasReason(Reason::kAdapterNotFound));
}

struct BadAlias {
  std::string name;
  AdapterRef ref;
  Reason reason;
  std::string message;
};

TEST_P(RevisionsTest, ARefThatNamesNothingIsRefused) {
  LoadRevisions(1, {"1", "2"});
  ASSERT_THAT(SetAlias("x", "old", RevisionOf("1")), IsOk());
  const BadAlias all[] = {
      {"UnknownAlias", {"x", "", "nobody"}, Reason::kAdapterNotFound, "no alias \"nobody\""},
      {"AliasAndAnotherRevision",
       {"x", RevisionOf("2"), "old"},
       Reason::kRevisionMismatch,
       "x@old"},
      {"UnknownRevision", {"x", "77", ""}, Reason::kRevisionMismatch, "77 is not kept"},
      {"UnknownName", {"y", "", "old"}, Reason::kAdapterNotFound, "\"y\""},
  };
  for (const BadAlias& bad : all) {
    SCOPED_TRACE(bad.name);
    const absl::StatusOr<Handles> refused = Acquire({bad.ref});
    EXPECT_THAT(refused, HasReason(bad.reason));
    EXPECT_THAT(refused, HasMessage(HasSubstr(bad.message)));
  }
  EXPECT_THAT(Acquire({{"x", RevisionOf("1"), "old"}}), IsOk());
}

TEST_P(RevisionsTest, ABadAliasChangesNothing) {
  LoadRevisions(1, {"1"});
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot before, registry_->Get("x"));
  EXPECT_THAT(SetAlias("x", "a", "77"), HasReason(Reason::kRevisionMismatch));
  EXPECT_THAT(SetAlias("y", "a", "77"), HasReason(Reason::kAdapterNotFound));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot same, SetAlias("x", "nobody", ""));
  EXPECT_EQ(same.etag, before.etag);
  for (size_t i = 0; i < 64; ++i) {
    ASSERT_THAT(SetAlias("x", "a" + std::to_string(i), RevisionOf("1")), IsOk());
  }
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot full, registry_->Get("x"));
  const absl::StatusOr<AdapterSnapshot> refused = SetAlias("x", "one more", RevisionOf("1"));
  EXPECT_THAT(refused, HasReason(Reason::kInvalidField));
  EXPECT_THAT(refused, HasErrorMetadata("field", "alias"));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot still, SetAlias("x", "a0", RevisionOf("1")));
  EXPECT_EQ(still.etag, full.etag);
  EXPECT_EQ(still.aliases.size(), 64u);
}

TEST_P(RevisionsTest, ARollbackSwapsTheCurrentOne) {
  LoadRevisions(2, {"1", "2", "3"});
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot before, registry_->Get("x"));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, Rollback("x", RevisionOf("1")));
  EXPECT_EQ(after.digest.revision, RevisionOf("1"));
  EXPECT_EQ(after.source, "1");
  EXPECT_NE(after.etag, before.etag);
  EXPECT_THAT(after.kept_revisions, ElementsAre(RevisionOf("3"), RevisionOf("2")));
  EXPECT_EQ(registry_->Get("x")->in_flight, 0);
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", ""}}));
  EXPECT_EQ(handles[0]->revision(), RevisionOf("1"));
  for (const char* text : {"1", "2", "3"}) EXPECT_EQ(sources_[text].reads, 1);
  EXPECT_EQ(registry_->totals().resident, 1);
}

TEST_P(RevisionsTest, ARollbackToAnEvictedRevisionReadsItFirst) {
  LoadRevisions(1, {"1", "2"});
  EvictAll();
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, Rollback("x", RevisionOf("1")));
  EXPECT_EQ(after.state, AdapterState::kReady);
  EXPECT_EQ(after.digest.revision, RevisionOf("1"));
  EXPECT_EQ(sources_["1"].reads, 2);
  EXPECT_EQ(sources_["2"].reads, 1);
  EXPECT_EQ(registry_->totals().resident, 1);
  EXPECT_EQ(budget_->used(), Unit());
}

TEST_P(RevisionsTest, ARollbackToTheCurrentRevisionChangesNothing) {
  LoadRevisions(1, {"1", "2"});
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot before, registry_->Get("x"));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, Rollback("x", RevisionOf("2")));
  EXPECT_EQ(after.etag, before.etag);
  EXPECT_THAT(after.kept_revisions, ElementsAre(RevisionOf("1")));
}

TEST_P(RevisionsTest, ARollbackThatCannotBeChangesNothing) {
  LoadRevisions(1, {"1", "2"});
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot before, registry_->Get("x"));
  EXPECT_THAT(Rollback("x", "77"), HasReason(Reason::kRevisionMismatch));
  EXPECT_THAT(Rollback("y", RevisionOf("1")), HasReason(Reason::kAdapterNotFound));
  EvictAll();
  sources_.Put("1", ContentOf("other", 2));
  EXPECT_THAT(Rollback("x", RevisionOf("1")), HasReason(Reason::kAdapterFailed));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, registry_->Get("x"));
  EXPECT_EQ(after.etag, before.etag);
  EXPECT_EQ(after.digest.revision, RevisionOf("2"));
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
}

TEST_P(RevisionsTest, ARollbackWorksOnADisabledAdapter) {
  LoadRevisions(1, {"1", "2"});
  UpdateRequest disable;
  disable.name = "x";
  disable.enabled = false;
  ASSERT_THAT(Update(disable), IsOk());
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, Rollback("x", RevisionOf("1")));
  EXPECT_FALSE(after.enabled);
  EXPECT_EQ(after.digest.revision, RevisionOf("1"));
}

TEST_P(RevisionsTest, AFailedRevisionGivesWayToARollback) {
  LoadRevisions(1, {"1", "2"});
  EvictAll();
  sources_.Put("2", ContentOf("other", 2));
  ASSERT_THAT(Acquire({{"x", ""}}), HasReason(Reason::kAdapterFailed));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, Rollback("x", RevisionOf("1")));
  EXPECT_EQ(after.state, AdapterState::kReady);
  EXPECT_THAT(after.kept_revisions, IsEmpty());  // what failed is of no use
}

// The public id holds the base model's name, which a rollback may change.
TEST_P(RevisionsTest, ARollbackBringsItsPublicIdAlong) {
  options_.keep_revisions = 1;
  Start(kRoomy, "{base}");
  FakeContent one = ContentOf("1");
  one.base_model = "first";
  FakeContent two = ContentOf("2");
  two.base_model = "second";
  sources_.Put("1", one);
  sources_.Put("2", two);
  ASSERT_THAT(Load(Request("x", "1")), IsOk());
  ASSERT_THAT(Load(Replacing(Request("x", "2"))), IsOk());
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, Rollback("x", RevisionOf("1")));
  EXPECT_EQ(after.public_id, "first");
  ASSERT_THAT(Load(Request("y", "2")), IsOk());  // "second" is free
  EXPECT_THAT(Rollback("x", RevisionOf("2")), HasReason(Reason::kAdapterExists));
  EXPECT_EQ(registry_->Get("x")->public_id, "first");
  EXPECT_THAT(Load(Request("z", "1")), HasReason(Reason::kAdapterExists));
}

}  // namespace
}  // namespace adapterd
