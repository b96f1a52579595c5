// Loads of a name in use: what counts as the same, and what it costs to find out.
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using SameContentTest = RegistryTest;
INSTANTIATE_TEST_SUITE_P(Threads, SameContentTest, ::testing::Values(1, 4), ThreadsName);

int64_t Nanoseconds(absl::Time time) { return absl::ToUnixNanos(time); }

TEST_P(SameContentTest, SameContentAndOptionsIsANoOp) {
  FakeSource& source = sources_.Put("a");
  ASSERT_OK_AND_ASSIGN(const LoadResult first, Load(Request("x")));
  for (const bool replace : {false, true}) {
    LoadRequest request = Request("x");
    request.replace = replace;
    ASSERT_OK_AND_ASSIGN(const LoadResult second, Load(request));
    EXPECT_TRUE(second.already_loaded);
    EXPECT_EQ(second.replaced_revision, "");
    EXPECT_EQ(second.adapter.digest, first.adapter.digest);
    EXPECT_EQ(second.adapter.etag, first.adapter.etag);
    EXPECT_EQ(second.adapter.load_time, first.adapter.load_time);
  }
  EXPECT_EQ(source.reads, 1);
  EXPECT_EQ(budget_->used(), BytesOf(FakeContent()));
  ASSERT_EQ(Events().size(), 3u);
  EXPECT_FALSE(Events()[1].read);
}

TEST_P(SameContentTest, ANoOpNeedsNoRoomInTheBudget) {
  FakeSource& source = sources_.Put("a");
  Start(BytesOf(FakeContent()));
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_EQ(budget_->used(), budget_->limit());
  ASSERT_OK_AND_ASSIGN(const LoadResult second, Load(Request("x")));
  EXPECT_TRUE(second.already_loaded);
  // Also when the content has to be digested to know.
  FakeContent touched;
  touched.changed_ns = 5;
  sources_.Put("a", touched);
  ASSERT_OK_AND_ASSIGN(const LoadResult third, Load(Request("x")));
  EXPECT_TRUE(third.already_loaded);
  EXPECT_EQ(source.digests, 1);
  EXPECT_EQ(source.reads, 1);
}

TEST_P(SameContentTest, UnchangedOldFilesAreNotReadAgain) {
  FakeSource& source = sources_.Put("a");
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_THAT(Load(Request("x")), IsOk());
  EXPECT_EQ(source.digests, 0);
  EXPECT_EQ(source.reads, 1);
}

TEST_P(SameContentTest, FilesThatChangedJustBeforeTheyWereReadAreDigestedAgain) {
  // A write in the same tick of the file system's clock does not show in its times.
  FakeContent fresh;
  fresh.changed_ns = Nanoseconds(absl::Now() + absl::Hours(1)) / 1000 * 1000 + 1;
  FakeSource& source = sources_.Put("a", fresh);
  ASSERT_THAT(Load(Request("x")), IsOk());
  ASSERT_OK_AND_ASSIGN(const LoadResult same, Load(Request("x")));
  EXPECT_TRUE(same.already_loaded);
  EXPECT_EQ(source.digests, 1);

  fresh.text = "2";  // other bytes, and the very same times
  sources_.Put("a", fresh);
  EXPECT_THAT(Load(Request("x")), HasReason(Reason::kAdapterExists));
  EXPECT_EQ(source.digests, 2);
}

TEST_P(SameContentTest, CoarseClocksNeedMoreDistance) {
  // A second ago is long for a clock that ticks in milliseconds and nothing for one in seconds.
  FakeContent content;
  content.changed_ns = Nanoseconds(absl::FromUnixSeconds(absl::ToUnixSeconds(absl::Now()) - 1));
  FakeSource& coarse = sources_.Put("coarse", content);
  content.changed_ns += 1;
  FakeSource& fine = sources_.Put("fine", content);
  for (int i = 0; i < 2; ++i) {
    ASSERT_THAT(Load(Request("c", "coarse")), IsOk());
    ASSERT_THAT(Load(Request("f", "fine")), IsOk());
  }
  EXPECT_EQ(coarse.digests, 1);
  EXPECT_EQ(fine.digests, 0);
}

TEST_P(SameContentTest, TouchedFilesWithEqualContentAreANoOp) {
  FakeSource& source = sources_.Put("a");
  ASSERT_THAT(Load(Request("x")), IsOk());
  FakeContent touched;
  touched.changed_ns = 2;
  sources_.Put("a", touched);
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Request("x")));
  EXPECT_TRUE(result.already_loaded);
  EXPECT_EQ(source.digests, 1);
  EXPECT_EQ(source.reads, 1);
}

TEST_P(SameContentTest, EqualContentFromElsewhereIsANoOp) {
  sources_.Put("a");
  FakeContent copy;
  copy.changed_ns = 2;
  FakeSource& b = sources_.Put("b", copy);
  ASSERT_THAT(Load(Request("x", "a")), IsOk());
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Request("x", "b")));
  EXPECT_TRUE(result.already_loaded);
  EXPECT_EQ(result.adapter.source, "a");
  EXPECT_EQ(b.reads, 0);
}

TEST_P(SameContentTest, OtherContentNeedsReplace) {
  FakeSource& source = sources_.Put("a");
  ASSERT_THAT(Load(Request("x")), IsOk());
  FakeContent other;
  other.text = "2";
  other.changed_ns = 2;
  sources_.Put("a", other);
  const absl::StatusOr<LoadResult> refused = Load(Request("x"));
  EXPECT_THAT(refused, HasReason(Reason::kAdapterExists));
  EXPECT_THAT(refused.status(), HasErrorMetadata("adapter", "x"));
  EXPECT_THAT(refused.status(), HasErrorMetadata("expected", DigestOf(other).revision));
  EXPECT_THAT(refused.status(), HasErrorMetadata("actual", DigestOf(FakeContent()).revision));
  EXPECT_EQ(source.reads, 1);
  EXPECT_EQ(registry_->Get("x")->digest, DigestOf(FakeContent()));
}

TEST_P(SameContentTest, OtherOptionsNeedReplace) {
  sources_.Put("a");
  ASSERT_OK_AND_ASSIGN(const LoadResult first, Load(Request("x")));
  LoadRequest pinned = Request("x");
  pinned.pinned = true;
  EXPECT_THAT(Load(pinned), HasReason(Reason::kAdapterExists));
  LoadRequest labelled = Request("x");
  labelled.labels = {{"team", "red"}};
  EXPECT_THAT(Load(labelled), HasReason(Reason::kAdapterExists));
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot adapter, registry_->Get("x"));
  EXPECT_FALSE(adapter.pinned);
  EXPECT_TRUE(adapter.labels.empty());
  EXPECT_EQ(adapter.etag, first.adapter.etag);
}

TEST_P(SameContentTest, AnotherBaseModelIsOtherContent) {
  sources_.Put("a");
  ASSERT_THAT(Load(Request("x")), IsOk());
  LoadRequest other = Request("x");
  other.source.base_model = "other";
  EXPECT_THAT(Load(other), HasReason(Reason::kAdapterExists));
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Replacing(other)));
  EXPECT_EQ(result.adapter.manifest->base_model, "other");
  EXPECT_EQ(result.adapter.public_id, "other:x");
}

TEST_P(SameContentTest, AnExpectedDigestIsCheckedOnANoOpToo) {
  sources_.Put("a");
  ASSERT_THAT(Load(Request("x")), IsOk());
  LoadRequest request = Request("x");
  request.expected_digest = std::string(64, '0');
  EXPECT_THAT(Load(request), HasReason(Reason::kDigestMismatch));
  EXPECT_THAT(Load(Replacing(request)), HasReason(Reason::kDigestMismatch));
  request.expected_digest = DigestOf(FakeContent()).revision;
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(request));
  EXPECT_TRUE(result.already_loaded);
  request.expected_digest = DigestOf(FakeContent()).weights_sha256;
  ASSERT_OK_AND_ASSIGN(const LoadResult by_file, Load(request));
  EXPECT_TRUE(by_file.already_loaded);
}

TEST_P(SameContentTest, AnUnchangedBaseIsTheSameContent) {
  FakeSource& source = sources_.Put("a");
  LoadRequest request = Request("x");
  request.source.base_checkpoint = "base";
  ASSERT_THAT(Load(request), IsOk());
  ASSERT_OK_AND_ASSIGN(const LoadResult second, Load(request));
  EXPECT_TRUE(second.already_loaded);
  EXPECT_EQ(source.reads, 1);
}

// What was derived from it may differ: only reading it again tells.
TEST_P(SameContentTest, ABaseThatWasOnlyTouchedIsTheSameContent) {
  FakeSource& source = sources_.Put("a");
  LoadRequest request = Request("x");
  request.source.base_checkpoint = "base";
  ASSERT_THAT(Load(request), IsOk());
  FakeContent content;
  content.base_changed_ns = 2;
  sources_.Put("a", content);
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(request));
  EXPECT_TRUE(result.already_loaded);
  EXPECT_EQ(source.reads, 2);
  EXPECT_EQ(budget_->used(), BytesOf(content));
}

TEST_P(SameContentTest, ABaseThatChangedIsOtherContent) {
  FakeSource& source = sources_.Put("a");
  LoadRequest request = Request("x");
  request.source.base_checkpoint = "base";
  ASSERT_THAT(Load(request), IsOk());
  FakeContent content;
  content.base_changed_ns = 2;
  content.understood_as = "other";
  sources_.Put("a", content);
  EXPECT_THAT(Load(request), HasReason(Reason::kAdapterExists));
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Replacing(request)));
  EXPECT_FALSE(result.already_loaded);
  EXPECT_EQ(result.replaced_revision, DigestOf(content).revision);  // the adapter's own content
  EXPECT_EQ(source.reads, 3);
}

TEST_P(SameContentTest, AnotherBaseCheckpointOrNoneIsOtherContent) {
  sources_.Put("a");
  LoadRequest with_base = Request("x");
  with_base.source.base_checkpoint = "base";
  ASSERT_THAT(Load(with_base), IsOk());
  LoadRequest other_base = with_base;
  other_base.source.base_checkpoint = "other";
  for (const LoadRequest& other : {Request("x"), other_base}) {
    EXPECT_THAT(Load(other), HasReason(Reason::kAdapterExists));
  }
  ASSERT_OK_AND_ASSIGN(const LoadResult result, Load(Replacing(Request("x"))));
  EXPECT_FALSE(result.already_loaded);
}

TEST_P(SameContentTest, ASourceThatIsGoneIsAnErrorAndTheAdapterStays) {
  FakeContent gone;
  gone.open_error = Error(Reason::kSourceNotFound, "gone");
  sources_.Put("a");
  ASSERT_THAT(Load(Request("x")), IsOk());
  sources_.Put("a", gone);
  EXPECT_THAT(Load(Request("x")), HasReason(Reason::kSourceNotFound));
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
}

}  // namespace
}  // namespace adapterd
