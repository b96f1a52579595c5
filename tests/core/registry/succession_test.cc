// Loads of content that was made of what a name has, and of content that has yet to be made.
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

class SuccessionTest : public RegistryTest {
 protected:
  SuccessionTest() {
    sources_.Put("a", ContentOf("a"));
    sources_.Put("b", ContentOf("b"));
    LoadRequest first = Request("x", "a");
    first.pinned = true;
    first.labels = {{"team", "red"}};
    EXPECT_THAT(Load(first), IsOk());
  }

  // Content "b" in the place of what x has.
  LoadRequest Next() {
    LoadRequest next = Replacing(Request("x", "b"));
    next.keep_options = true;
    next.successor_of = registry_->Get("x")->digest.revision;
    return next;
  }
};
INSTANTIATE_TEST_SUITE_P(Threads, SuccessionTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(SuccessionTest, OptionsStayWhenTheyAreToBeKept) {
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Next()));
  EXPECT_EQ(result.adapter.digest.revision, RevisionOf("b"));
  EXPECT_TRUE(result.adapter.pinned);
  EXPECT_EQ(result.adapter.labels, (Labels{{"team", "red"}}));
}

TEST_P(SuccessionTest, OtherOptionsAreNoOtherContent) {
  LoadRequest again = Request("x", "a");
  again.keep_options = true;
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(again));
  EXPECT_TRUE(result.already_loaded);
  EXPECT_TRUE(result.adapter.pinned);
}

TEST_P(SuccessionTest, ANewNameTakesTheRequestsOptions) {
  LoadRequest fresh = Request("y", "b");
  fresh.keep_options = true;
  fresh.pinned = true;
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(fresh));
  EXPECT_TRUE(result.adapter.pinned);
}

TEST_P(SuccessionTest, ARevisionThatMovedOnIsRefused) {
  const LoadRequest stale = Next();
  ASSERT_THAT(Load(Next()), IsOk());
  sources_.Put("c", ContentOf("c"));
  LoadRequest late = stale;
  late.source.source = "c";
  EXPECT_THAT(Load(late), HasReason(Reason::kRevisionMismatch));
  EXPECT_EQ(registry_->Get("x")->digest.revision, RevisionOf("b"));
}

TEST_P(SuccessionTest, AnEtagThatMovedOnIsRefused) {
  LoadRequest stale = Next();
  stale.etag = registry_->Get("x")->etag;
  UpdateRequest update;
  update.name = "x";
  update.enabled = false;
  ASSERT_THAT(Update(update), IsOk());
  EXPECT_THAT(Load(stale), HasReason(Reason::kEtagMismatch));
  stale.etag = registry_->Get("x")->etag;
  EXPECT_THAT(Load(stale), IsOk());
}

TEST_P(SuccessionTest, ANameThatIsGoneIsNotFound) {
  LoadRequest orphan = Next();
  orphan.name = "gone";
  EXPECT_THAT(Load(orphan), HasReason(Reason::kAdapterNotFound));
  EXPECT_THAT(registry_->Get("gone"), HasReason(Reason::kAdapterNotFound));
}

TEST_P(SuccessionTest, RoomIsAskedForBeforeThereIsContent) {
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot x, registry_->Get("x"));
  const AdapterManifest manifest = *x.manifest;
  ASSERT_OK_AND_ASSIGN(const int64_t bytes, registry_->BytesFor(manifest));
  EXPECT_EQ(bytes, x.load_bytes);
  registry_->SetMemoryBudget(2 * bytes);
  EXPECT_THAT(registry_->CheckRoomFor(Request("y", "b"), manifest), IsOk());
  registry_->SetMemoryBudget(2 * bytes - 1);  // x is pinned
  const absl::Status refused = registry_->CheckRoomFor(Request("y", "b"), manifest);
  EXPECT_THAT(refused, HasReason(Reason::kMemoryBudgetExceeded));
  EXPECT_THAT(refused, HasErrorMetadata("needed_bytes", std::to_string(bytes)));
  EXPECT_THAT(registry_->CheckRoomFor(Next(), manifest), HasReason(Reason::kMemoryBudgetExceeded));
  // Without replace, no load of a name in use takes memory.
  EXPECT_THAT(registry_->CheckRoomFor(Request("x", "b"), manifest), IsOk());
}

}  // namespace
}  // namespace adapterd
