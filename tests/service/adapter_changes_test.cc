// UpdateAdapter, RollbackAdapter and SetAlias.
#include "service/adapter_changes.h"

#include <functional>

#include "tests/service/fake_adapters_fixture.h"
#include "tests/testing/status_matchers.h"

namespace adapterd {
namespace {

using ::testing::_;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;
using Update = v1::UpdateAdapterRequest;

struct MaskCase {
  std::function<void(Update&)> fill;
  std::optional<bool> enabled;
  std::optional<bool> pinned;
  std::optional<Labels> labels;
};

TEST(UpdateRequestTest, TheMaskDecidesWhatChanges) {
  const auto mask = [](Update& u, std::initializer_list<const char*> paths) {
    for (const char* path : paths) u.mutable_update_mask()->add_paths(path);
  };
  const MaskCase cases[] = {
      {[](Update&) {}, {}, {}, {}},
      {[](Update& u) { u.set_enabled(false); }, false, {}, {}},
      {[](Update& u) { u.set_pinned(true); }, {}, true, {}},
      {[](Update& u) {
         u.mutable_update_mask();
         u.set_pinned(false);
       },
       {},
       false,
       {}},
      {[&](Update& u) { mask(u, {"enabled"}); }, true, {}, {}},
      {[&](Update& u) {
         mask(u, {"pinned", "pinned"});
       },
       {},
       false,
       {}},
      {[&](Update& u) { mask(u, {"labels"}); }, {}, {}, Labels{}},
      {[&](Update& u) {
         mask(u, {"labels"});
         (*u.mutable_labels())["k"] = "v";
       },
       {},
       {},
       Labels{{"k", "v"}}},
      {[&](Update& u) {
         mask(u, {"pinned"});
         u.set_enabled(false);
         u.set_pinned(true);
       },
       {},
       true,
       {}},
      {[&](Update& u) {
         mask(u, {"labels", "enabled", "pinned"});
         u.set_enabled(false);
       },
       false, false, Labels{}},
  };
  for (const MaskCase& test : cases) {
    Update request;
    request.set_name("a");
    request.set_etag("tag");
    test.fill(request);
    SCOPED_TRACE(request.DebugString());
    ASSERT_OK_AND_ASSIGN(const UpdateRequest update, UpdateRequestFromProto(request));
    EXPECT_EQ(update.name, "a");
    EXPECT_EQ(update.etag, "tag");
    EXPECT_EQ(update.enabled, test.enabled);
    EXPECT_EQ(update.pinned, test.pinned);
    EXPECT_EQ(update.labels, test.labels);
  }
}

TEST(UpdateRequestTest, WrongRequestsNameTheField) {
  const std::pair<const char*, std::function<void(Update&)>> cases[] = {
      {"name", [](Update& u) { u.set_name("a@b"); }},
      {"name", [](Update& u) { u.clear_name(); }},
      {"update_mask", [](Update& u) { u.mutable_update_mask()->add_paths("source"); }},
      {"update_mask", [](Update& u) { u.mutable_update_mask()->add_paths("*"); }},
      {"update_mask", [](Update& u) { u.mutable_update_mask()->add_paths("labels.team"); }},
      {"update_mask", [](Update& u) { u.mutable_update_mask()->add_paths(""); }},
      {"labels", [](Update& u) { (*u.mutable_labels())["k"] = "v"; }},
      {"labels",
       [](Update& u) {
         (*u.mutable_labels())["k"] = "v";
         u.mutable_update_mask()->add_paths("enabled");
       }},
      {"labels",
       [](Update& u) {
         (*u.mutable_labels())["k"] = "a b";
         u.mutable_update_mask()->add_paths("labels");
       }},
  };
  for (const auto& [field, spoil] : cases) {
    Update request;
    request.set_name("a");
    spoil(request);
    SCOPED_TRACE(request.DebugString());
    const absl::Status status = UpdateRequestFromProto(request).status();
    EXPECT_THAT(status, HasReason(Reason::kInvalidField));
    EXPECT_THAT(status, HasErrorMetadata("field", field));
  }
  Update request;
  request.set_name("a");
  request.mutable_update_mask()->add_paths("sauce");
  EXPECT_THAT(UpdateRequestFromProto(request).status(), HasErrorMetadata("actual", "sauce"));
}

class AdapterChangesTest : public FakeAdaptersFixture {
 protected:
  Reply<v1::UpdateAdapterResponse> Enable(bool enabled, const std::string& etag = "") {
    Update request;
    request.set_name("a");
    request.set_enabled(enabled);
    request.set_etag(etag);
    return server_.Update(request);
  }
};

TEST_F(AdapterChangesTest, AnUpdateAnswersWithTheAdapterAndANewEtag) {
  const v1::Adapter before = Load("a", "one", {{"team", "red"}});
  Update request;
  request.set_name("a");
  request.set_pinned(true);
  (*request.mutable_labels())["team"] = "blue";
  request.mutable_update_mask()->add_paths("pinned");
  request.mutable_update_mask()->add_paths("labels");
  const auto reply = server_.Update(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_TRUE(reply->adapter().pinned());
  EXPECT_TRUE(reply->adapter().enabled());
  EXPECT_THAT(reply->adapter().labels(), ElementsAre(Pair("team", "blue")));
  EXPECT_NE(reply->adapter().etag(), before.etag());
  EXPECT_EQ(reply->adapter().revision(), before.revision());
  EXPECT_EQ(Get("a").etag(), reply->adapter().etag());
  EXPECT_THAT(server_.Unload("a").status, IsRpcError(Reason::kAdapterPinned));
}

TEST_F(AdapterChangesTest, AnEtagThatMovedOnChangesNothing) {
  const std::string etag = Load("a", "one").etag();
  ASSERT_THAT(Enable(false, etag).status, IsRpcOk());
  const auto late = Enable(true, etag);
  EXPECT_THAT(late.status, IsRpcError(Reason::kEtagMismatch));
  EXPECT_THAT(late.status, HasRpcMetadata("adapter", "a"));
  EXPECT_FALSE(Get("a").enabled());
  EXPECT_THAT(Enable(true, Get("a").etag()).status, IsRpcOk());
  EXPECT_TRUE(Get("a").enabled());
}

TEST_F(AdapterChangesTest, ADisabledAdapterServesNobodyUntilItIsEnabled) {
  Load("a", "one");
  ASSERT_THAT(Use("a").status, IsRpcOk());
  ASSERT_THAT(Enable(false).status, IsRpcOk());
  const auto refused = Use("a");
  EXPECT_THAT(refused.status, IsRpcError(Reason::kAdapterDisabled));
  EXPECT_THAT(refused.status, HasRpcMetadata("adapter", "a"));
  v1::MergeRequest merge;
  merge.add_adapters()->set_name("a");
  merge.mutable_module()->set_path(FakeModule().path);
  merge.mutable_weight()->add_shape(FakeModule().out_features);
  merge.mutable_weight()->add_shape(FakeModule().in_features);
  for (int i = 0; i < 32; ++i) merge.mutable_weight()->add_f32_values(1);
  EXPECT_THAT(server_.Merge(merge).status, IsRpcError(Reason::kAdapterDisabled));
  ASSERT_THAT(Enable(true).status, IsRpcOk());
  EXPECT_THAT(Use("a").status, IsRpcOk());
  EXPECT_THAT(server_.Merge(merge).status, IsRpcOk());
}

TEST_F(AdapterChangesTest, AnAliasKeepsItsRevisionUntilItIsMoved) {
  const std::string one = Load("a", "one").revision();
  const auto set = server_.SetAlias("a", "prod", one);
  ASSERT_THAT(set.status, IsRpcOk());
  EXPECT_THAT(set->adapter().aliases(), ElementsAre(Pair("prod", one)));
  const std::string two = Load("a", "two").revision();
  EXPECT_EQ(RevisionUsed("a"), two);
  EXPECT_EQ(RevisionUsed("a@prod"), one);
  ASSERT_THAT(server_.SetAlias("a", "prod", two).status, IsRpcOk());
  ASSERT_THAT(server_.SetAlias("a", "old", one).status, IsRpcOk());
  EXPECT_EQ(RevisionUsed("a@prod"), two);
  EXPECT_EQ(RevisionUsed("a@old"), one);
  EXPECT_THAT(Get("a").aliases(), UnorderedElementsAre(Pair("prod", two), Pair("old", one)));
  ASSERT_THAT(server_.SetAlias("a", "old", "").status, IsRpcOk());
  EXPECT_THAT(Get("a").aliases(), UnorderedElementsAre(Pair("prod", two)));
  EXPECT_FALSE(Use("a@old").status.ok());
  EXPECT_THAT(server_.SetAlias("a", "never", "").status, IsRpcOk());
}

TEST_F(AdapterChangesTest, OneContentUnderTwoNamesOfItIsListedOnce) {
  const std::string one = Load("a", "one").revision();
  ASSERT_THAT(server_.SetAlias("a", "prod", one).status, IsRpcOk());
  v1::ApplyProjectionRequest request;
  v1::Segment& segment = *request.add_segments();
  for (const char* name : {"a", "a@prod"}) segment.add_adapters()->set_name(name);
  segment.add_adapters()->set_name("a");
  segment.mutable_adapters(2)->set_revision(one);
  request.add_projections()->mutable_module()->set_path(FakeModule().path);
  request.mutable_input()->add_shape(FakeModule().in_features);
  for (int i = 0; i < FakeModule().in_features; ++i) request.mutable_input()->add_f32_values(1);
  const auto reply = server_.Apply(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_EQ(reply->outputs(0).applied(), 3);
  ASSERT_EQ(reply->adapters_size(), 1);
  EXPECT_EQ(reply->adapters(0).name(), "a");
  EXPECT_EQ(reply->adapters(0).revision(), one);
}

TEST_F(AdapterChangesTest, ARollbackSwapsTheCurrentRevisionAndAKeptOne) {
  const std::string one = Load("a", "one").revision();
  const std::string two = Load("a", "two").revision();
  EXPECT_THAT(Get("a").kept_revisions(), ElementsAre(one));
  const auto back = server_.Rollback("a", one);
  ASSERT_THAT(back.status, IsRpcOk());
  EXPECT_EQ(back->adapter().revision(), one);
  EXPECT_THAT(back->adapter().kept_revisions(), ElementsAre(two));
  EXPECT_EQ(RevisionUsed("a"), one);
  const auto again = server_.Rollback("a", one);
  ASSERT_THAT(again.status, IsRpcOk());
  EXPECT_EQ(again->adapter().etag(), back->adapter().etag());
}

TEST_F(AdapterChangesTest, RevisionsThatAreNotKeptAreNotServed) {
  Load("a", "one");
  const std::string other = RevisionOf("other");
  EXPECT_THAT(server_.Rollback("a", other).status, IsRpcError(Reason::kRevisionMismatch));
  EXPECT_THAT(server_.SetAlias("a", "prod", other).status, IsRpcError(Reason::kRevisionMismatch));
  EXPECT_THAT(Use("a", other).status, IsRpcError(Reason::kRevisionMismatch));
  EXPECT_THAT(Get("a").aliases(), IsEmpty());
}

TEST_F(AdapterChangesTest, UnknownAdaptersAreNotFound) {
  Update update;
  update.set_name("a");
  for (const grpc::Status& status :
       {server_.Update(update).status, server_.Rollback("a", RevisionOf("x")).status,
        server_.SetAlias("a", "prod", RevisionOf("x")).status,
        server_.SetAlias("a", "prod", "").status}) {
    EXPECT_THAT(status, IsRpcError(Reason::kAdapterNotFound));
    EXPECT_THAT(status, HasRpcMetadata("adapter", "a"));
  }
}

TEST_F(AdapterChangesTest, WrongNamesAndRevisionsNameTheField) {
  Load("a", "one");
  const std::string revision = RevisionOf("one");
  std::string upper = revision;
  for (char& c : upper) c = static_cast<char>(std::toupper(c));
  const std::pair<const char*, grpc::Status> cases[] = {
      {"name", server_.Rollback("", revision).status},
      {"name", server_.Rollback("a@prod", revision).status},
      {"revision", server_.Rollback("a", "").status},
      {"revision", server_.Rollback("a", revision.substr(1)).status},
      {"revision", server_.Rollback("a", upper).status},
      {"name", server_.SetAlias("a/b", "prod", revision).status},
      {"alias", server_.SetAlias("a", "", revision).status},
      {"alias", server_.SetAlias("a", "x@y", revision).status},
      {"alias", server_.SetAlias("a", "-x", revision).status},
      {"alias", server_.SetAlias("a", std::string(129, 'x'), revision).status},
      {"revision", server_.SetAlias("a", "prod", revision + "0").status},
      {"revision", server_.SetAlias("a", "prod", upper).status},
  };
  for (const auto& [field, status] : cases) {
    EXPECT_THAT(status, IsRpcError(Reason::kInvalidField));
    EXPECT_THAT(status, HasRpcMetadata("field", field));
  }
  for (int i = 0; i < 64; ++i) {
    ASSERT_THAT(server_.SetAlias("a", "alias" + std::to_string(i), revision).status, IsRpcOk());
  }
  EXPECT_THAT(server_.SetAlias("a", "one-more", revision).status,
              IsRpcError(Reason::kInvalidField));
}

TEST_F(AdapterChangesTest, ADisabledAdapterThatIsSkippedContributesNothing) {
  Load("a", "one");
  ASSERT_THAT(Enable(false).status, IsRpcOk());
  const auto skipped = Use("a", "", /*skip_disabled=*/true);
  ASSERT_THAT(skipped.status, IsRpcOk());
  ASSERT_EQ(skipped->outputs_size(), 1);
  EXPECT_EQ(skipped->outputs(0).applied(), 0);
  EXPECT_EQ(skipped->outputs(0).path(), "");
  EXPECT_EQ(skipped->outputs(0).output().f32_values_size(), 0);
  EXPECT_THAT(skipped->adapters(), IsEmpty());
}

TEST_F(AdapterChangesTest, OthersContributeBesideADisabledOne) {
  Load("a", "one");
  Load("b", "two");
  ASSERT_THAT(Enable(false).status, IsRpcOk());
  v1::ApplyProjectionRequest request;
  for (const char* name : {"a", "b", "a"}) {
    v1::Segment& segment = *request.add_segments();
    segment.set_rows(1);
    segment.add_adapters()->set_name(name);
  }
  request.mutable_segments(2)->add_adapters()->set_name("b");
  v1::Projection& projection = *request.add_projections();
  projection.mutable_module()->set_path(FakeModule().path);
  const int64_t in = FakeModule().in_features;
  const int64_t out = FakeModule().out_features;
  request.mutable_input()->add_shape(3);
  request.mutable_input()->add_shape(in);
  for (int i = 0; i < 3 * in; ++i) request.mutable_input()->add_f32_values(1);
  projection.mutable_base_output()->add_shape(3);
  projection.mutable_base_output()->add_shape(out);
  for (int i = 0; i < 3 * out; ++i) projection.mutable_base_output()->add_f32_values(10);
  EXPECT_THAT(server_.Apply(request).status, IsRpcError(Reason::kAdapterDisabled));
  request.set_skip_disabled(true);
  const auto reply = server_.Apply(request);
  ASSERT_THAT(reply.status, IsRpcOk());
  EXPECT_EQ(reply->outputs(0).applied(), 2);
  EXPECT_EQ(reply->outputs(0).path(), FakeModule().path);
  ASSERT_EQ(reply->adapters_size(), 1);
  EXPECT_EQ(reply->adapters(0).name(), "b");
  // A is 0.5 and B 0.25 everywhere: 8 inputs of 1 make 4 in each of 2 ranks, and these 2.
  const float expected[] = {10, 12, 12};
  for (int row = 0; row < 3; ++row) {
    for (int64_t o = 0; o < out; ++o) {
      EXPECT_EQ(reply->outputs(0).output().f32_values(static_cast<int>(row * out + o)),
                expected[row]);
    }
  }
}

}  // namespace
}  // namespace adapterd
