// Acquiring: all handles or none, waiting for what is being loaded.
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

using ::testing::IsEmpty;

class AcquireTest : public RegistryTest {
 protected:
  AcquireTest() {
    content_["a"].text = "1";
    content_["b"].text = "2";
    for (const auto& [path, content] : content_) sources_.Put(path, content);
  }

  std::map<std::string, FakeContent> content_;
};
INSTANTIATE_TEST_SUITE_P(Threads, AcquireTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(AcquireTest, HandlesComeInTheOrderOfTheRequest) {
  ASSERT_THAT(Load(Request("a", "a")), IsOk());
  ASSERT_THAT(Load(Request("b", "b")), IsOk());
  ASSERT_OK_AND_ASSIGN(const Handles handles,
                       Acquire({{"b", ""}, {"a", DigestOf(content_["a"]).revision}, {"b", ""}}));
  ASSERT_EQ(handles.size(), 3u);
  EXPECT_EQ(handles[0]->revision(), DigestOf(content_["b"]).revision);
  EXPECT_EQ(handles[1]->revision(), DigestOf(content_["a"]).revision);
  EXPECT_EQ(&*handles[2], &*handles[0]);
}

TEST_P(AcquireTest, NothingAskedForIsNothingGiven) {
  ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({}));
  EXPECT_THAT(handles, IsEmpty());
}

TEST_P(AcquireTest, UsesAreCounted) {
  ASSERT_THAT(Load(Request("a", "a")), IsOk());
  {
    ASSERT_OK_AND_ASSIGN(const Handles handles, Acquire({{"a", ""}, {"a", ""}}));
    ASSERT_OK_AND_ASSIGN(const AdapterSnapshot used, registry_->Get("a"));
    EXPECT_EQ(used.use_count, 2);
    EXPECT_EQ(used.in_flight, 2);
    EXPECT_TRUE(used.last_use_time.has_value());
  }
  EXPECT_EQ(registry_->Get("a")->use_count, 2);
  EXPECT_EQ(registry_->Get("a")->in_flight, 0);
}

TEST_P(AcquireTest, MovedHandlesCountOnce) {
  ASSERT_THAT(Load(Request("a", "a")), IsOk());
  ASSERT_THAT(Load(Request("b", "b")), IsOk());
  ASSERT_OK_AND_ASSIGN(Handles handles, Acquire({{"a", ""}, {"b", ""}}));
  AdapterHandle moved = std::move(handles[0]);
  EXPECT_EQ(registry_->Get("a")->in_flight, 1);
  moved = std::move(handles[1]);  // lets go of "a"
  EXPECT_EQ(moved->revision(), DigestOf(content_["b"]).revision);
  EXPECT_EQ(registry_->Get("a")->in_flight, 0);
  EXPECT_EQ(registry_->Get("b")->in_flight, 1);
  handles.clear();
  EXPECT_EQ(registry_->Get("b")->in_flight, 1);
  ASSERT_OK_AND_ASSIGN(const UnloadResult unloaded, Unload(UnloadOf("a")));
  EXPECT_TRUE(unloaded.freed);
}

TEST_P(AcquireTest, OneUnknownNameMeansNoHandleAtAll) {
  ASSERT_THAT(Load(Request("a", "a")), IsOk());
  const absl::StatusOr<Handles> refused = Acquire({{"a", ""}, {"nobody", ""}});
  EXPECT_THAT(refused, HasReason(Reason::kAdapterNotFound));
  EXPECT_THAT(refused.status(), HasErrorMetadata("adapter", "nobody"));
  EXPECT_EQ(registry_->Get("a")->in_flight, 0);
}

TEST_P(AcquireTest, OneOtherRevisionMeansNoHandleAtAll) {
  ASSERT_THAT(Load(Request("a", "a")), IsOk());
  ASSERT_THAT(Load(Request("b", "b")), IsOk());
  const absl::StatusOr<Handles> refused =
      Acquire({{"a", ""}, {"b", DigestOf(content_["a"]).revision}});
  EXPECT_THAT(refused, HasReason(Reason::kRevisionMismatch));
  EXPECT_THAT(refused.status(), HasErrorMetadata("adapter", "b"));
  EXPECT_THAT(refused.status(), HasErrorMetadata("expected", DigestOf(content_["a"]).revision));
  EXPECT_THAT(refused.status(), HasErrorMetadata("actual", DigestOf(content_["b"]).revision));
  EXPECT_EQ(registry_->Get("a")->in_flight, 0);
}

TEST_P(AcquireTest, ItWaitsForALoadAndHoldsNothingMeanwhile) {
  ASSERT_THAT(Load(Request("a", "a")), IsOk());
  FakeSource& b = sources_["b"];
  b.read_gate.Close();
  Started load = StartLoad(Request("b", "b"));
  b.read_gate.AwaitVisitor();
  StartedAcquire acquire = StartAcquire({{"a", ""}, {"b", ""}});
  EXPECT_FALSE(acquire.pending.answered());
  EXPECT_EQ(registry_->Get("a")->in_flight, 0);
  b.read_gate.Open();
  ASSERT_OK_AND_ASSIGN(const Handles handles, acquire.pending.Wait());
  ASSERT_EQ(handles.size(), 2u);
  EXPECT_EQ(handles[1]->revision(), DigestOf(content_["b"]).revision);
  EXPECT_THAT(load.pending.Wait(), IsOk());
}

TEST_P(AcquireTest, ItWaitsForOneLoadAfterTheOther) {
  for (const char* path : {"a", "b"}) sources_[path].read_gate.Close();
  Started load_a = StartLoad(Request("a", "a"));
  Started load_b = StartLoad(Request("b", "b"));
  StartedAcquire acquire = StartAcquire({{"a", ""}, {"b", ""}});
  sources_["a"].read_gate.Open();
  EXPECT_THAT(load_a.pending.Wait(), IsOk());
  EXPECT_FALSE(acquire.pending.answered());
  sources_["b"].read_gate.Open();
  ASSERT_OK_AND_ASSIGN(const Handles handles, acquire.pending.Wait());
  EXPECT_EQ(handles.size(), 2u);
  EXPECT_THAT(load_b.pending.Wait(), IsOk());
}

TEST_P(AcquireTest, AFailedLoadMeansThereIsNoSuchAdapter) {
  FakeContent broken;
  broken.read_error = Error(Reason::kNonFiniteWeights, "NaN");
  FakeSource& source = sources_.Put("broken", broken);
  source.read_gate.Close();
  Started load = StartLoad(Request("x", "broken"));
  source.read_gate.AwaitVisitor();
  StartedAcquire acquire = StartAcquire({{"x", ""}});
  source.read_gate.Open();
  EXPECT_THAT(acquire.pending.Wait(), HasReason(Reason::kAdapterNotFound));
  EXPECT_THAT(load.pending.Wait(), HasReason(Reason::kNonFiniteWeights));
}

TEST_P(AcquireTest, WaitingIsGivenUpOnCancel) {
  FakeSource& a = sources_["a"];
  a.read_gate.Close();
  Started load = StartLoad(Request("a", "a"));
  a.read_gate.AwaitVisitor();
  StartedAcquire acquire = StartAcquire({{"a", ""}});
  registry_->Cancel(acquire.ticket);
  EXPECT_THAT(acquire.pending.Wait(), StatusIs(absl::StatusCode::kCancelled));
  a.read_gate.Open();
  EXPECT_THAT(load.pending.Wait(), IsOk());  // whoever loads goes on
  EXPECT_EQ(registry_->Get("a")->in_flight, 0);
}

TEST_P(AcquireTest, CancelAfterTheAnswerChangesNothing) {
  ASSERT_THAT(Load(Request("a", "a")), IsOk());
  StartedAcquire acquire = StartAcquire({{"a", ""}});
  registry_->Cancel(acquire.ticket);
  ASSERT_OK_AND_ASSIGN(const Handles handles, acquire.pending.Wait());
  EXPECT_EQ(handles.size(), 1u);
}

}  // namespace
}  // namespace adapterd
