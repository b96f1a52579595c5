// ReconcileAdapters: plans, and what becomes of them.
#include "service/reconcile.h"

#include <fmt/format.h>

#include "tests/service/fake_adapters_fixture.h"
#include "tests/testing/pending.h"

namespace adapterd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;
using ::testing::UnorderedElementsAre;
using Request = v1::ReconcileAdaptersRequest;

constexpr v1::ReconcileAction kLoad = v1::RECONCILE_ACTION_LOAD;
constexpr v1::ReconcileAction kReplace = v1::RECONCILE_ACTION_REPLACE;
constexpr v1::ReconcileAction kUnload = v1::RECONCILE_ACTION_UNLOAD;
constexpr v1::ReconcileAction kUnchanged = v1::RECONCILE_ACTION_UNCHANGED;
constexpr v1::ReconcileAction kConflict = v1::RECONCILE_ACTION_CONFLICT;

class ReconcileServiceTest : public FakeAdaptersFixture {
 protected:
  static v1::AdapterSpec& Want(Request& request, const std::string& name,
                               const std::string& source) {
    v1::AdapterSpec& spec = *request.add_desired();
    spec.set_name(name);
    spec.set_source(source);
    return spec;
  }

  // What happened to whom; their errors go to errors_.
  std::vector<std::pair<std::string, v1::ReconcileAction>> Run(const Request& request) {
    const auto reply = server_.Reconcile(request);
    EXPECT_THAT(reply.status, IsRpcOk());
    errors_.clear();
    std::vector<std::pair<std::string, v1::ReconcileAction>> actions;
    for (const v1::ReconcileChange& change : reply->changes()) {
      actions.emplace_back(change.name(), change.action());
      EXPECT_NE(change.reason(), "");
      if (!change.error().empty()) errors_[change.name()] = change.error();
    }
    return actions;
  }

  std::vector<std::string> Names() {
    std::vector<std::string> names;
    const auto reply = server_.List();
    for (const v1::Adapter& adapter : reply->adapters()) names.push_back(adapter.name());
    return names;
  }

  std::map<std::string, std::string> errors_;  // of the last Run
};

TEST_F(ReconcileServiceTest, WhatIsDesiredIsThereAndASecondCallChangesNothing) {
  Load("changed", "one");
  Load("gone", "two");
  Load("kept", "three");
  for (const char* source : {"four", "five"}) Put(source);
  Request request;
  Want(request, "new", "four").set_pinned(true);
  (*Want(request, "changed", "five").mutable_labels())["team"] = "red";
  Want(request, "kept", "three").set_expected_digest(RevisionOf("three"));
  request.set_prune(true);
  request.set_dry_run(true);
  const auto expected = ElementsAre(std::pair("changed", kReplace), std::pair("gone", kUnload),
                                    std::pair("kept", kUnchanged), std::pair("new", kLoad));
  const int64_t before = server_.registry().events().last_sequence();
  EXPECT_THAT(Run(request), expected);
  EXPECT_EQ(server_.registry().events().last_sequence(), before);
  EXPECT_THAT(Names(), ElementsAre("changed", "gone", "kept"));

  request.set_dry_run(false);
  EXPECT_THAT(Run(request), expected);
  EXPECT_THAT(errors_, IsEmpty());
  EXPECT_THAT(Names(), ElementsAre("changed", "kept", "new"));
  EXPECT_EQ(Get("changed").revision(), RevisionOf("five"));
  EXPECT_EQ(Get("changed").labels().at("team"), "red");
  EXPECT_TRUE(Get("new").pinned());

  const int64_t after = server_.registry().events().last_sequence();
  EXPECT_THAT(Run(request),
              ElementsAre(std::pair("changed", kUnchanged), std::pair("kept", kUnchanged),
                          std::pair("new", kUnchanged)));
  EXPECT_EQ(server_.registry().events().last_sequence(), after);
}

TEST_F(ReconcileServiceTest, WithoutPruneNothingIsUnloaded) {
  Load("a", "one");
  EXPECT_THAT(Run({}), IsEmpty());
  Request request;
  Put("two");
  Want(request, "b", "two");
  EXPECT_THAT(Run(request), ElementsAre(std::pair("b", kLoad)));
  EXPECT_THAT(Names(), ElementsAre("a", "b"));
}

TEST_F(ReconcileServiceTest, NothingDesiredAndPruneUnloadsAllButThePinned) {
  Load("a", "one");
  Load("b", "two");
  v1::UpdateAdapterRequest pin;
  pin.set_name("b");
  pin.set_pinned(true);
  ASSERT_THAT(server_.Update(pin).status, IsRpcOk());
  Request request;
  request.set_prune(true);
  EXPECT_THAT(Run(request), ElementsAre(std::pair("a", kUnload), std::pair("b", kConflict)));
  EXPECT_THAT(Names(), ElementsAre("b"));
}

TEST_F(ReconcileServiceTest, WhatAFolderBroughtIsLeftAlone) {
  Put("one");
  Put("two");
  for (const char* name : {"a", "b"}) {
    LoadRequest load;
    load.name = name;
    load.source.source = "one";
    load.owner = AdapterOwner::kFolder;
    Pending<LoadResult> pending;
    server_.registry().Load(load, pending.Callback());
    ASSERT_TRUE(pending.Wait().ok());
  }
  Request request;
  Want(request, "a", "two");
  request.set_prune(true);
  EXPECT_THAT(Run(request), ElementsAre(std::pair("a", kConflict)));
  EXPECT_THAT(Names(), ElementsAre("a", "b"));
  EXPECT_EQ(Get("a").revision(), RevisionOf("one"));
}

TEST_F(ReconcileServiceTest, WhatFailsIsInItsChangeAndTheOthersAreMade) {
  Load("replaced", "one");
  FakeContent broken;
  broken.read_error = Error(Reason::kNonFiniteWeights, std::string(2000, 'x'));
  sources_.Put("broken", broken);
  Put("two");
  Request request;
  Want(request, "bad", "broken");
  Want(request, "good", "two");
  Want(request, "missing", "nowhere");
  Want(request, "replaced", "two").set_expected_digest(RevisionOf("other"));
  EXPECT_THAT(Run(request),
              ElementsAre(std::pair("bad", kLoad), std::pair("good", kLoad),
                          std::pair("missing", kLoad), std::pair("replaced", kReplace)));
  EXPECT_THAT(errors_, SizeIs(3));
  EXPECT_THAT(errors_["bad"], StartsWith("NON_FINITE_WEIGHTS: "));
  EXPECT_LE(errors_["bad"].size(), kMaxChangeErrorBytes);
  EXPECT_THAT(errors_["missing"], StartsWith("SOURCE_NOT_FOUND: "));
  EXPECT_THAT(errors_["replaced"], StartsWith("DIGEST_MISMATCH: "));
  EXPECT_THAT(Names(), ElementsAre("good", "replaced"));
  EXPECT_EQ(Get("replaced").revision(), RevisionOf("one"));
}

TEST_F(ReconcileServiceTest, MemoryOfWhatGoesIsThereForWhatComes) {
  FakeContent large;
  large.modules[0].in_features = 4096;
  large.text = "large one";
  sources_.Put("one", large);
  large.text = "large two";
  sources_.Put("two", large);
  Request first;
  Want(first, "a", "one").set_pinned(true);
  EXPECT_THAT(Run(first), ElementsAre(std::pair("a", kLoad)));
  const int64_t bytes = server_.used_bytes();
  v1::UpdateAdapterRequest unpin;
  unpin.set_name("a");
  unpin.set_pinned(false);
  ASSERT_THAT(server_.Update(unpin).status, IsRpcOk());
  server_.registry().SetMemoryBudget(bytes + bytes / 2);
  Request second;
  Want(second, "b", "two").set_pinned(true);
  second.set_prune(true);
  EXPECT_THAT(Run(second), ElementsAre(std::pair("a", kUnload), std::pair("b", kLoad)));
  EXPECT_THAT(errors_, IsEmpty());
  EXPECT_EQ(server_.used_bytes(), bytes);
}

TEST_F(ReconcileServiceTest, ManyLoadsAreMade) {
  Request request;
  for (int i = 0; i < 300; ++i) {
    const std::string name = fmt::format("a{}", 1000 + i);
    Put(name);
    Want(request, name, name);
  }
  EXPECT_THAT(Run(request), SizeIs(300));
  EXPECT_THAT(errors_, IsEmpty());
  v1::ListAdaptersRequest list;
  list.set_state(v1::ADAPTER_STATE_READY);
  EXPECT_EQ(server_.List(list)->total_size(), 300);
  request.clear_desired();
  request.set_prune(true);
  EXPECT_THAT(Run(request), SizeIs(300));
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(ReconcileServiceTest, WrongSpecsAreRefusedBeforeAnythingIsDone) {
  Load("a", "one");
  const auto refuse = [&](const Request& request, const std::string& field) {
    const auto reply = server_.Reconcile(request);
    EXPECT_THAT(reply.status, IsRpcError(Reason::kInvalidField));
    EXPECT_THAT(reply.status, HasRpcMetadata("field", field));
  };
  Request base;
  base.set_prune(true);
  Want(base, "b", "one");
  Request twice = base;
  Want(twice, "c", "one");
  Want(twice, "b", "two");
  refuse(twice, "desired[2].name");
  Request name = base;
  Want(name, "c@d", "one");
  refuse(name, "desired[1].name");
  Request digest = base;
  Want(digest, "c", "one").set_expected_digest(std::string(64, 'F'));
  refuse(digest, "desired[1].expected_digest");
  Request many;
  for (int i = 0; i <= kMaxDesired; ++i) Want(many, fmt::format("a{}", i), "one");
  refuse(many, "desired");
  EXPECT_THAT(Names(), ElementsAre("a"));
}

TEST_F(ReconcileServiceTest, ADrainingServerOnlyPlans) {
  Put("one");
  Request request;
  Want(request, "a", "one");
  server_.draining() = true;
  EXPECT_THAT(server_.Reconcile(request).status, IsRpcError(Reason::kDraining));
  request.set_dry_run(true);
  EXPECT_THAT(Run(request), ElementsAre(std::pair("a", kLoad)));
}

TEST_F(ReconcileServiceTest, ACallerThatLeavesTakesItsLoadsAlong) {
  Request request;
  for (int i = 0; i < 40; ++i) {
    const std::string name = fmt::format("a{}", 10 + i);
    Put(name);
    sources_[name].read_gate.Close();
    Want(request, name, name);
  }
  grpc::ClientContext context;
  v1::ReconcileAdaptersResponse response;
  Pending<bool> ended;
  const auto done =
      std::make_shared<absl::AnyInvocable<void(absl::StatusOr<bool>)>>(ended.Callback());
  server_.adapters().async()->ReconcileAdapters(
      &context, &request, &response, [done](const grpc::Status& status) {
        (*done)(status.error_code() == grpc::StatusCode::CANCELLED);
      });
  sources_["a10"].read_gate.AwaitVisitor();
  SpinUntil([&] { return server_.registry().totals().adapters == kMaxReconcileLoads; });
  context.TryCancel();
  EXPECT_TRUE(ended.Wait().value());
  // The client knows before the server does, which gives the loads up when it ends the call.
  EXPECT_TRUE(server_.AwaitNoCalls(kTestPatience));
  sources_.OpenAllGates();
  SpinUntil([&] { return server_.registry().totals().adapters == 0; });
  EXPECT_EQ(server_.used_bytes(), 0);
}

}  // namespace
}  // namespace adapterd
