// Replacing: an atomic swap, or nothing at all.
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class ReplaceTest : public RegistryTest {
 protected:
  ReplaceTest() {
    two_.text = "2";
    two_.modules[0].rank = 4;
    two_.changed_ns = 2;
    sources_.Put("one", one_);
    sources_.Put("two", two_);
  }

  LoadRequest One() const { return Request("x", "one"); }
  LoadRequest Two() const { return Replacing(Request("x", "two")); }

  FakeContent one_;
  FakeContent two_;
};
INSTANTIATE_TEST_SUITE_P(Threads, ReplaceTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(ReplaceTest, TheNewRevisionTakesOver) {
  ASSERT_OK_AND_ASSIGN(const LoadResult first, Load(One()));
  ASSERT_OK_AND_ASSIGN(const LoadResult second, Load(Two()));
  EXPECT_FALSE(second.already_loaded);
  EXPECT_EQ(second.replaced_revision, DigestOf(one_).revision);
  EXPECT_EQ(second.adapter.digest, DigestOf(two_));
  EXPECT_EQ(second.adapter.source, "two");
  EXPECT_NE(second.adapter.etag, first.adapter.etag);
  EXPECT_EQ(budget_->used(), BytesOf(two_));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot adapter, registry_->Get("x"));
  EXPECT_EQ(adapter.digest, DigestOf(two_));
  EXPECT_THAT(adapter.draining_revisions, IsEmpty());
}

TEST_P(ReplaceTest, ReplaceOfANameThatIsFreeIsALoad) {
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Two()));
  EXPECT_EQ(result.replaced_revision, "");
  EXPECT_FALSE(result.already_loaded);
}

TEST_P(ReplaceTest, AnOldHandleKeepsItsRevisionUntilItIsLetGo) {
  ASSERT_THAT(Load(One()), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles old, Acquire({{"x", ""}}));
  ASSERT_OK_AND_ASSIGN(const LoadResult replaced, Load(Two()));
  EXPECT_THAT(replaced.adapter.draining_revisions, ElementsAre(DigestOf(one_).revision));
  EXPECT_EQ(old[0]->revision(), DigestOf(one_).revision);
  EXPECT_EQ(budget_->used(), BytesOf(one_) + BytesOf(two_));
  EXPECT_EQ(registry_->Get("x")->memory_bytes, BytesOf(two_));
  EXPECT_THAT(registry_->Get("x")->draining_revisions, ElementsAre(DigestOf(one_).revision));

  ASSERT_OK_AND_ASSIGN(const Handles current, Acquire({{"x", ""}}));
  EXPECT_EQ(current[0]->revision(), DigestOf(two_).revision);
  EXPECT_THAT(Acquire({{"x", DigestOf(one_).revision}}), HasReason(Reason::kRevisionMismatch));

  old.clear();
  EXPECT_EQ(budget_->used(), BytesOf(two_));
  EXPECT_THAT(registry_->Get("x")->draining_revisions, IsEmpty());
}

TEST_P(ReplaceTest, ARevisionThatNobodyUsesDoesNotDrain) {
  ASSERT_THAT(Load(One()), IsOk());
  ASSERT_OK_AND_ASSIGN(const LoadResult replaced, Load(Two()));
  EXPECT_THAT(replaced.adapter.draining_revisions, IsEmpty());
}

TEST_P(ReplaceTest, SeveralRevisionsDrainAtOnce) {
  ASSERT_THAT(Load(One()), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles first, Acquire({{"x", ""}}));
  ASSERT_THAT(Load(Two()), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles second, Acquire({{"x", ""}}));
  FakeContent three = one_;
  three.text = "3";
  sources_.Put("three", three);
  ASSERT_THAT(Load(Replacing(Request("x", "three"))), IsOk());
  EXPECT_THAT(registry_->Get("x")->draining_revisions,
              ElementsAre(DigestOf(one_).revision, DigestOf(two_).revision));
  EXPECT_EQ(budget_->used(), BytesOf(one_) + BytesOf(two_) + BytesOf(three));
  first.clear();
  EXPECT_THAT(registry_->Get("x")->draining_revisions, ElementsAre(DigestOf(two_).revision));
  second.clear();
  EXPECT_EQ(budget_->used(), BytesOf(three));
}

TEST_P(ReplaceTest, TheOldRevisionServesWhileTheNewOneIsRead) {
  ASSERT_THAT(Load(One()), IsOk());
  sources_["two"].read_gate.Close();
  Started started = StartLoad(Two());
  sources_["two"].read_gate.AwaitVisitor();
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot adapter, registry_->Get("x"));
  EXPECT_EQ(adapter.state, AdapterState::kReady);
  EXPECT_EQ(adapter.digest, DigestOf(one_));
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", ""}}));
  EXPECT_EQ(handles[0]->revision(), DigestOf(one_).revision);
  EXPECT_EQ(budget_->used(), BytesOf(one_) + BytesOf(two_));
  sources_["two"].read_gate.Open();
  EXPECT_THAT(started.pending.Wait(), IsOk());
  EXPECT_EQ(registry_->Get("x")->digest, DigestOf(two_));
}

TEST_P(ReplaceTest, AFailedReplaceLeavesTheOldServing) {
  ASSERT_OK_AND_ASSIGN(const LoadResult first, Load(One()));
  FakeContent broken = two_;
  broken.text = "broken";
  broken.base_model = "another base";  // and with it another public id
  broken.read_error = Error(Reason::kNonFiniteWeights, "NaN");
  // Content is compared by digest before it is read, so both passes find it.
  sources_.Put("two", broken);
  EXPECT_THAT(Load(Two()), HasReason(Reason::kNonFiniteWeights));

  sources_.Put("two", two_);
  LoadRequest mismatch = Two();
  mismatch.expected_digest = std::string(64, 'f');
  EXPECT_THAT(Load(mismatch), HasReason(Reason::kDigestMismatch));

  FakeContent huge = two_;
  huge.text = "huge";
  huge.modules[0].in_features = 1 << 28;
  sources_.Put("two", huge);
  EXPECT_THAT(Load(Two()), HasReason(Reason::kMemoryBudgetExceeded));

  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot adapter, registry_->Get("x"));
  EXPECT_EQ(adapter.state, AdapterState::kReady);
  EXPECT_EQ(adapter.digest, DigestOf(one_));
  EXPECT_EQ(adapter.etag, first.adapter.etag);
  EXPECT_EQ(adapter.public_id, first.adapter.public_id);
  EXPECT_EQ(budget_->used(), BytesOf(one_));
  EXPECT_THAT(Acquire({{"x", DigestOf(one_).revision}}), IsOk());
}

TEST_P(ReplaceTest, ACancelledReplaceLeavesTheOldServing) {
  ASSERT_THAT(Load(One()), IsOk());
  sources_["two"].read_gate.Close();
  Started started = StartLoad(Two());
  sources_["two"].read_gate.AwaitVisitor();
  registry_->Cancel(started.ticket);
  EXPECT_THAT(started.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  sources_["two"].read_gate.Open();
  // The unload waits for the dropped load to end.
  ASSERT_OK_AND_ASSIGN(const UnloadResult unloaded, Unload(UnloadOf("x", DigestOf(one_).revision)));
  EXPECT_EQ(unloaded.freed_bytes, BytesOf(one_));
  EXPECT_EQ(budget_->used(), 0);
}

TEST_P(ReplaceTest, BothRevisionsMustFitTogetherWhileTheOldOneIsUsed) {
  Start(BytesOf(one_) + BytesOf(two_) - 1);
  ASSERT_THAT(Load(One()), IsOk());
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", ""}}));
  EXPECT_THAT(Load(Two()), HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_EQ(registry_->Get("x")->digest, DigestOf(one_));
  Start(BytesOf(one_) + BytesOf(two_));
  ASSERT_THAT(Load(One()), IsOk());
  EXPECT_THAT(Load(Two()), IsOk());
}

TEST_P(ReplaceTest, ReplacingOptionsAloneReadsNothing) {
  ASSERT_OK_AND_ASSIGN(const LoadResult first, Load(One()));
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", ""}}));
  LoadRequest request = Replacing(One());
  request.pinned = true;
  request.labels = {{"team", "red"}};
  ASSERT_OK_AND_ASSIGN(const LoadResult second, Load(request));
  EXPECT_FALSE(second.already_loaded);
  EXPECT_TRUE(second.adapter.pinned);
  EXPECT_EQ(second.adapter.labels, request.labels);
  EXPECT_EQ(second.adapter.digest, first.adapter.digest);
  EXPECT_NE(second.adapter.etag, first.adapter.etag);
  EXPECT_EQ(second.adapter.load_time, first.adapter.load_time);
  EXPECT_EQ(second.adapter.use_count, 1);
  EXPECT_THAT(second.adapter.draining_revisions, IsEmpty());
  EXPECT_EQ(sources_["one"].reads, 1);
  EXPECT_EQ(budget_->used(), BytesOf(one_));
  ASSERT_OK_AND_ASSIGN(const LoadResult third, Load(request));
  EXPECT_TRUE(third.already_loaded);
}

TEST_P(ReplaceTest, CountsOfUsesSurviveAReplace) {
  ASSERT_THAT(Load(One()), IsOk());
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"x", ""}, {"x", ""}}));
  ASSERT_OK_AND_ASSIGN(const LoadResult replaced, Load(Two()));
  EXPECT_EQ(replaced.adapter.use_count, 2);
  EXPECT_EQ(replaced.adapter.in_flight, 2);
  EXPECT_TRUE(replaced.adapter.last_use_time.has_value());
}

}  // namespace
}  // namespace adapterd
