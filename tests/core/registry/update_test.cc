// Changes that need no weights: options, etags, disabled adapters.
#include "tests/core/registry/registry_fixture.h"

namespace adapterd {
namespace {

class UpdateTest : public RegistryTest {
 protected:
  UpdateTest() {
    EXPECT_THAT(LoadOwn("x"), IsOk());
    EXPECT_THAT(LoadOwn("y"), IsOk());
  }

  static UpdateRequest Of(const std::string& name) {
    UpdateRequest request;
    request.name = name;
    return request;
  }
  static UpdateRequest Enabling(const std::string& name, bool enabled) {
    UpdateRequest request = Of(name);
    request.enabled = enabled;
    return request;
  }
};
INSTANTIATE_TEST_SUITE_P(Threads, UpdateTest, ::testing::Values(1, 4), ThreadsName);

TEST_P(UpdateTest, OnlyWhatIsSetChanges) {
  UpdateRequest labels = Of("x");
  labels.labels = Labels{{"team", "red"}};
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot labelled, Update(labels));
  EXPECT_EQ(labelled.labels, *labels.labels);
  EXPECT_TRUE(labelled.enabled);
  EXPECT_FALSE(labelled.pinned);
  UpdateRequest pin = Of("x");
  pin.pinned = true;
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot pinned, Update(pin));
  EXPECT_EQ(pinned.labels, *labels.labels);
  EXPECT_TRUE(pinned.pinned);
  EXPECT_NE(pinned.etag, labelled.etag);
  labels.labels = Labels();
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot bare, Update(labels));
  EXPECT_TRUE(bare.labels.empty());
}

TEST_P(UpdateTest, AnUpdateThatChangesNothingKeepsTheEtag) {
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot before, registry_->Get("x"));
  const int64_t sequence = registry_->events().last_sequence();
  UpdateRequest request = Of("x");
  request.enabled = true;
  request.pinned = false;
  request.labels = Labels();
  for (const UpdateRequest& nothing : {request, Of("x")}) {
    ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, Update(nothing));
    EXPECT_EQ(after.etag, before.etag);
  }
  EXPECT_EQ(registry_->events().last_sequence(), sequence);
}

TEST_P(UpdateTest, AnOldEtagIsRefused) {
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot before, registry_->Get("x"));
  UpdateRequest request = Enabling("x", false);
  request.etag = before.etag;
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, Update(request));
  request.enabled = true;
  const absl::StatusOr<AdapterSnapshot> refused = Update(request);
  EXPECT_THAT(refused, HasReason(Reason::kEtagMismatch));
  EXPECT_THAT(refused, HasErrorMetadata("expected", before.etag));
  EXPECT_THAT(refused, HasErrorMetadata("actual", after.etag));
  EXPECT_FALSE(registry_->Get("x")->enabled);
}

TEST_P(UpdateTest, AnUnknownNameIsNotFound) {
  EXPECT_THAT(Update(Enabling("nobody", true)), HasReason(Reason::kAdapterNotFound));
}

TEST_P(UpdateTest, ItWaitsForALoadOfTheName) {
  FakeSource& source = sources_.Put("z", ContentOf("z"));
  source.read_gate.Close();
  Started load = StartLoad(Request("z", "z"));
  source.read_gate.AwaitVisitor();
  Pending<AdapterSnapshot> update;
  Pending<AdapterSnapshot> given_up;
  registry_->Update(Enabling("z", false), update.Callback());
  UpdateRequest pin = Of("z");
  pin.pinned = true;
  const AdapterRegistry::TicketPtr ticket = registry_->Update(pin, given_up.Callback());
  EXPECT_FALSE(update.answered());
  registry_->Cancel(ticket);
  EXPECT_THAT(given_up.Wait(), StatusIs(absl::StatusCode::kCancelled));
  source.read_gate.Open();
  EXPECT_THAT(load.pending.Wait(), IsOk());
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, update.Wait());
  EXPECT_FALSE(after.enabled);
  EXPECT_FALSE(after.pinned);
}

TEST_P(UpdateTest, ADisabledAdapterIsRefusedOrSkipped) {
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot off, Update(Enabling("x", false)));
  EXPECT_FALSE(off.enabled);
  EXPECT_EQ(off.state, AdapterState::kReady);
  const absl::StatusOr<Handles> refused = Acquire({{"y", ""}, {"x", ""}});
  EXPECT_THAT(refused, HasReason(Reason::kAdapterDisabled));
  EXPECT_THAT(refused, HasErrorMetadata("adapter", "x"));
  EXPECT_EQ(registry_->Get("y")->in_flight, 0);
  Pending<Handles> skipping;
  registry_->Acquire({{"x", ""}, {"y", ""}}, true, skipping.Callback());
  ASSERT_OK_AND_ASSIGN(const Handles handles, skipping.Wait());
  ASSERT_EQ(handles.size(), 2u);
  EXPECT_TRUE(handles[0].empty());
  ASSERT_FALSE(handles[1].empty());
  EXPECT_EQ(handles[1]->revision(), RevisionOf("y"));
  ASSERT_THAT(Update(Enabling("x", true)), IsOk());
  EXPECT_THAT(Acquire({{"x", ""}}), IsOk());
}

TEST_P(UpdateTest, ASkippedAdapterIsNotReadAgain) {
  ASSERT_THAT(Update(Enabling("x", false)), IsOk());
  EvictAll();
  Pending<Handles> skipping;
  registry_->Acquire({{"x", ""}}, true, skipping.Callback());
  ASSERT_OK_AND_ASSIGN(const Handles handles, skipping.Wait());
  EXPECT_TRUE(handles[0].empty());
  EXPECT_EQ(sources_["x"].reads, 1);
}

TEST_P(UpdateTest, AReplaceKeepsItDisabled) {
  ASSERT_THAT(Update(Enabling("x", false)), IsOk());
  sources_.Put("x2", ContentOf("x2"));
  ASSERT_OK_AND_ASSIGN(const LoadResult replaced, Load(Replacing(Request("x", "x2"))));
  EXPECT_FALSE(replaced.adapter.enabled);
  EXPECT_THAT(Acquire({{"x", ""}}), HasReason(Reason::kAdapterDisabled));
}

TEST_P(UpdateTest, AnEvictedAdapterIsUpdatedWithoutReadingIt) {
  EvictAll();
  ASSERT_OK_AND_ASSIGN(const AdapterSnapshot after, Update(Enabling("x", false)));
  EXPECT_EQ(after.state, AdapterState::kEvicted);
  EXPECT_FALSE(after.enabled);
  EXPECT_EQ(sources_["x"].opens, 1);
}

}  // namespace
}  // namespace adapterd
